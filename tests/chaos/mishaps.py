"""What befalls the processes of a run at a named function, once: killed, an exception, another answer.

A test asks for them through the environment (see in_processes); hooked/sitecustomize.py puts them into
every process of the run, Ray's workers among them. Product code knows nothing of it.
"""

import errno
import functools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from support.import_hook import on_import
from support.paths import TESTS, python_path

_VARIABLE = "CHAOS"


@dataclass(frozen=True)
class Mishap:
    """module, function: where, as in ("camworker.ledger.ledger", "Ledger.commit_plan").

    when: "before" the function does its work or "after". about: text that its arguments have to hold.
    call: the which call in a process it is, from 1. does: "kill" (SIGKILL of the process), "full" (the
    OSError of a full disk) or "false" (the function answers False, each time). marker: a file that is made
    when it happens, so that it happens once, in one process.
    """

    module: str
    function: str
    marker: Path
    when: str = "before"
    about: str = ""
    call: int = 1
    does: str = "kill"

    @property
    def happened(self) -> bool:
        return self.marker.exists()


def in_processes(*mishaps: Mishap) -> dict[str, str]:
    """What a command's environment has to hold for these to happen in its processes."""
    content = json.dumps([{**asdict(mishap), "marker": str(mishap.marker)} for mishap in mishaps])
    return {_VARIABLE: content, "PYTHONPATH": python_path(TESTS / "chaos" / "hooked")}


def install() -> None:
    """Arrange for the mishaps that the environment asks for."""
    for entry in json.loads(os.environ[_VARIABLE]):
        mishap = Mishap(**{**entry, "marker": Path(entry["marker"])})
        on_import(mishap.module, functools.partial(_put_in, mishap=mishap))


def _put_in(module: ModuleType, mishap: Mishap) -> None:
    *owners, name = mishap.function.split(".")
    owner = functools.reduce(getattr, owners, module)
    setattr(owner, name, _spoiled(getattr(owner, name), mishap))


def _spoiled(function: Callable[..., Any], mishap: Mishap) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def spoiled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if mishap.does == "false":
            mishap.marker.touch()
            return False
        told = mishap.about in repr([a for a in args if isinstance(a, str | os.PathLike)])
        calls += told
        due = told and calls == mishap.call
        if due and mishap.when == "before":
            _happen(mishap)
        result = function(*args, **kwargs)
        if due and mishap.when == "after":
            _happen(mishap)
        return result

    return spoiled


def _happen(mishap: Mishap) -> None:
    try:
        os.close(os.open(mishap.marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if mishap.does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
