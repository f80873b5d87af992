"""Run lease: a chain of links, each created once, so that two runs do not compute the same recipe at a time.

OUT/ledger/recipe=R/lease/NNNNNNNN.json   taking, renewing and releasing each append the next number

Only the last link counts. A link is appended by creating the number after it, which one writer alone can do.
It spares work and is no lock: what keeps outputs right is that parts and plans are created once.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from camworker.errors import LeaseHeldError
from camworker.storage.store import Store

# A dead run's lease blocks others for _LEASE_SECONDS + SKEW_SECONDS at most.
_LEASE_SECONDS: Final = 120.0
_RENEW_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 2.0
# How far the clocks of two machines may be apart before a living run's lease can be taken.
SKEW_SECONDS: Final = 60.0

_LINK: Final = re.compile(r"(\d{8})\.json")
_PROC: Final = Path("/proc")

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One object of the chain. Times are seconds since the epoch by the holder's clock.

    holder: of one run, never used again. process: see process_name; None where that cannot be told.
    """

    holder: str
    host: str
    pid: int
    process: str | None
    since: float
    until: float
    released: bool = False

    def holds(self, now: float) -> bool:
        """Whether a run that finds this link last has to keep away."""
        return not self.released and now <= self.until + SKEW_SECONDS and not is_gone(self.process)

    def __str__(self) -> str:
        return (
            f"the run on {self.host}, process {self.pid}, since {_utc(self.since)}, "
            f"until {_utc(self.until)} unless it goes on"
        )


class Lease:
    """A lease that was taken, to be used as a context manager: renewed inside, released at its end.

    lost: None, or the link of the run that took over because this one could not renew in time.
    """

    def __init__(self, store: Store, folder: str, number: int, link: LeaseRecord, clock: Clock) -> None:
        self._store, self._folder, self._clock = store, folder, clock
        self._number, self._link = number, link
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.lost: LeaseRecord | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_JOIN_SECONDS)
        # Without a release the lease runs out by itself: no reason to hide what the run came to.
        if not self._thread.is_alive():
            with contextlib.suppress(OSError):
                self.release()

    def renew(self) -> bool:
        """Append the next link; False, and lost is set, where another run has. Raises OSError."""
        return self._append(replace(self._link, until=self._clock() + _LEASE_SECONDS))

    def release(self) -> None:
        """Append the link that lets the next run in at once. Raises OSError."""
        if self.lost is None:
            self._append(replace(self._link, until=self._clock(), released=True))

    def _append(self, link: LeaseRecord) -> bool:
        while not self._store.create(_key(self._folder, self._number + 1), _encode(link)):
            there = _decode(self._store.read(_key(self._folder, self._number + 1)))
            if there.holder != link.holder:
                self.lost = there
                return False
            # Ours: a create whose answer was lost, this one or one before it.
            self._number += 1
            if there == link:
                return True
        self._number += 1
        return True

    def _keep(self) -> None:
        wait = _RENEW_SECONDS
        while self.lost is None and not self._ended.wait(wait):
            try:
                self.renew()
                wait = _RENEW_SECONDS
            except OSError:
                wait = _RETRY_SECONDS  # until it works or another run takes over: see lost


class LeaseObserver:
    """Who holds a recipe's lease, for who looks again and again: the chain is listed once, then followed."""

    def __init__(self, store: Store, recipe: str) -> None:
        self._store, self._folder = store, _folder(recipe)
        self._number = _last(store, self._folder)
        self._link = self._read() if self._number else None

    def look(self, now: float) -> LeaseRecord | None:
        """The last link of the run that holds it now, in seconds since the epoch; None: no run does."""
        while self._store.exists(_key(self._folder, self._number + 1)):
            self._number += 1
            self._link = self._read()
        return self._link if self._link and self._link.holds(now) else None

    def _read(self) -> LeaseRecord:
        return _decode(self._store.read(_key(self._folder, self._number)))


def acquire(store: Store, recipe: str, *, clock: Clock = time.time) -> Lease:
    """Take the lease of a recipe. Raises LeaseHeldError while another run holds it, OSError."""
    folder = _folder(recipe)
    process = process_name(os.getpid())
    number = _last(store, folder)
    while True:
        if number and (last := _decode(store.read(_key(folder, number)))).holds(clock()):
            raise LeaseHeldError(f"another run holds recipe {recipe} of this output: {last}")
        now = clock()
        link = LeaseRecord(
            uuid.uuid4().hex, socket.gethostname(), os.getpid(), process, now, now + _LEASE_SECONDS
        )
        number += 1
        key = _key(folder, number)
        if store.create(key, _encode(link)) or _decode(store.read(key)).holder == link.holder:
            return Lease(store, folder, number, link, clock)


def process_name(pid: int) -> str | None:
    """A name that no other process has had: boot, process namespace, pid, start. None where none is told.

    Containers of one machine share its boot but not their pids, so that the namespace belongs to it.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
        # The command's name stands in parentheses and may hold anything; state is the first field after it.
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {namespace} {pid} {fields[18]}"


def is_gone(process: str | None) -> bool:
    """Whether a process is known to have ended: it was of this boot and namespace, and is not there."""
    ours = process_name(os.getpid())
    if process is None or ours is None or process.rsplit(" ", 2)[0] != ours.rsplit(" ", 2)[0]:
        return False
    return process_name(int(process.split()[-2])) != process


def _folder(recipe: str) -> str:
    return f"ledger/recipe={recipe}/lease"


def _last(store: Store, folder: str) -> int:
    """The number of the last link; 0 where there is none."""
    names = (entry.key.removeprefix(f"{folder}/") for entry in store.list(folder))
    return max((int(match[1]) for name in names if (match := _LINK.fullmatch(name))), default=0)


def _key(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"


def _encode(link: LeaseRecord) -> bytes:
    return json.dumps(asdict(link), indent=1).encode()


def _decode(data: bytes) -> LeaseRecord:
    return LeaseRecord(**json.loads(data))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
