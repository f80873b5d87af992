"""Incidents: a process of a run is killed, or gets an exception or a wrong answer, at a named function.

A test requests them through the environment (see `in_processes`); hooked/sitecustomize.py installs them in
every process of the run, including Ray's workers. Product code has no part in it.
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
from typing import Any, Literal

from support.import_hook import on_import
from support.paths import TESTS, python_path

_VARIABLE = "CHAOS"


@dataclass(frozen=True)
class Incident:
    """Something that happens once, in one process.

    Attributes:
        module: The module that defines the function, such as "camworker.ledger.ledger".
        function: The function, such as "Ledger.commit_plan".
        marker: A file that is created when the incident happens, so that it happens only once.
        when: "before" or "after" the function does its work.
        argument: Text that the function's arguments have to contain.
        call: The number of the matching call in its process, from 1.
        action: "kill" (SIGKILL of the process), "disk full" (an OSError) or "return False" (for every call).
    """

    module: str
    function: str
    marker: Path
    when: Literal["before", "after"] = "before"
    argument: str = ""
    call: int = 1
    action: Literal["kill", "disk full", "return False"] = "kill"

    @property
    def happened(self) -> bool:
        """Whether the incident has happened."""
        return self.marker.exists()


def in_processes(*incidents: Incident) -> dict[str, str]:
    """Return the environment variables with which a command's processes have these incidents."""
    content = json.dumps([{**asdict(incident), "marker": str(incident.marker)} for incident in incidents])
    return {_VARIABLE: content, "PYTHONPATH": python_path(TESTS / "chaos" / "hooked")}


def install() -> None:
    """Install the incidents that the environment requests."""
    for entry in json.loads(os.environ[_VARIABLE]):
        incident = Incident(**{**entry, "marker": Path(entry["marker"])})
        on_import(incident.module, functools.partial(_patch, incident=incident))


def _patch(module: ModuleType, incident: Incident) -> None:
    *owners, name = incident.function.split(".")
    owner = functools.reduce(getattr, owners, module)
    setattr(owner, name, _with_incident(getattr(owner, name), incident))


def _with_incident(function: Callable[..., Any], incident: Incident) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if incident.action == "return False":
            incident.marker.touch()
            return False
        matches = incident.argument in repr([a for a in args if isinstance(a, str | os.PathLike)])
        calls += matches
        due = matches and calls == incident.call
        if due and incident.when == "before":
            _happen(incident)
        result = function(*args, **kwargs)
        if due and incident.when == "after":
            _happen(incident)
        return result

    return wrapper


def _happen(incident: Incident) -> None:
    try:
        os.close(os.open(incident.marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if incident.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
