"""The lease of a recipe: it keeps two runs from computing the same images at the same time.

A lease is a chain of records, each created once under the next number; acquiring, renewing and releasing
append one. Only the last record counts, and only one writer can create the record after it. The lease saves
work, it is not a lock: outputs are correct without it because parts and plans are created once.
"""

import contextlib
import json
import os
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
from camworker.ledger.layout import Layout
from camworker.storage.store import Store

# The lease of a run that died blocks others for at most _LEASE_SECONDS + SKEW_SECONDS.
_LEASE_SECONDS: Final = 120.0
_RENEW_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 2.0
# If the clocks of two machines differ by more, the lease of a running run can be taken over.
SKEW_SECONDS: Final = 60.0

_PROC: Final = Path("/proc")

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A record of the chain. Times are in seconds since the epoch, by the clock of the holder.

    Attributes:
        holder: Random id of the run.
        host: Name of its machine.
        pid: Number of its process.
        process: Unique name of its process, see `process_name`; None if it is not known.
        since: When the lease was acquired.
        until: When it expires unless it is renewed.
        released: Whether the run has ended.
    """

    holder: str
    host: str
    pid: int
    process: str | None
    since: float
    until: float
    released: bool = False

    def holds(self, now: float) -> bool:
        """Return whether the holder still has the lease, if this is the last record.

        Args:
            now: The current time, in seconds since the epoch.
        """
        return not self.released and now <= self.until + SKEW_SECONDS and not is_gone(self.process)

    def __str__(self) -> str:
        return (
            f"the run on {self.host}, process {self.pid}, since {_utc(self.since)}, "
            f"until {_utc(self.until)} unless it is renewed"
        )


class Lease:
    """An acquired lease. As a context manager it renews itself in a thread, and releases itself at the end.

    Attributes:
        lost: None, or the record of the run that took over because this one could not renew in time.
    """

    def __init__(self, store: Store, layout: Layout, number: int, record: LeaseRecord, clock: Clock) -> None:
        self._store, self._layout, self._clock = store, layout, clock
        self._number, self._record = number, record
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
        # A lease that is not released expires; an error here must not hide the outcome of the run.
        if not self._thread.is_alive():
            with contextlib.suppress(OSError):
                self.release()

    def renew(self) -> bool:
        """Append a record that extends the lease.

        Returns:
            False if another run has taken over; `lost` is then set.

        Raises:
            OSError: The store cannot be written.
        """
        return self._append(replace(self._record, until=self._clock() + _LEASE_SECONDS))

    def release(self) -> None:
        """Append a record that lets another run acquire the lease at once.

        Raises:
            OSError: The store cannot be written.
        """
        if self.lost is None:
            self._append(replace(self._record, until=self._clock(), released=True))

    def _append(self, record: LeaseRecord) -> bool:
        while not self._store.create(self._layout.lease_key(self._number + 1), _encode(record)):
            existing = _decode(self._store.read(self._layout.lease_key(self._number + 1)))
            if existing.holder != record.holder:
                self.lost = existing
                return False
            # This run created the record: the answer to this create or to an earlier one was lost.
            self._number += 1
            if existing == record:
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
                wait = _RETRY_SECONDS  # until it succeeds or another run takes over, see `lost`


class LeaseObserver:
    """Polls the lease of a recipe. The chain is listed once; later polls only look for the next records."""

    def __init__(self, store: Store, recipe: str) -> None:
        self._store, self._layout = store, Layout(recipe)
        self._number = _last_number(store, self._layout)
        self._record = self._read() if self._number else None

    def poll(self, now: float) -> LeaseRecord | None:
        """Return the last record of the run that holds the lease, or None if no run does.

        Args:
            now: The current time, in seconds since the epoch.
        """
        while self._store.exists(self._layout.lease_key(self._number + 1)):
            self._number += 1
            self._record = self._read()
        return self._record if self._record and self._record.holds(now) else None

    def _read(self) -> LeaseRecord:
        return _decode(self._store.read(self._layout.lease_key(self._number)))


def acquire(store: Store, recipe: str, *, clock: Clock = time.time) -> Lease:
    """Acquire the lease of a recipe.

    Args:
        store: The store of the output.
        recipe: Id of the recipe.
        clock: The time, in seconds since the epoch.

    Raises:
        LeaseHeldError: Another run holds it.
        OSError: The store cannot be read or written.
    """
    layout = Layout(recipe)
    process = process_name(os.getpid())
    number = _last_number(store, layout)
    while True:
        if number and (last := _decode(store.read(layout.lease_key(number)))).holds(clock()):
            raise LeaseHeldError(f"another run holds recipe {recipe} of this output: {last}")
        now = clock()
        record = LeaseRecord(
            uuid.uuid4().hex, socket.gethostname(), os.getpid(), process, now, now + _LEASE_SECONDS
        )
        number += 1
        key = layout.lease_key(number)
        if store.create(key, _encode(record)) or _decode(store.read(key)).holder == record.holder:
            return Lease(store, layout, number, record, clock)


def process_name(pid: int) -> str | None:
    """Return a name that no other process has or had, or None if the process or /proc does not exist.

    The name holds the boot, the process namespace, the pid and the start time of the process. Containers on
    one machine share its boot but not their pids, hence the namespace.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
        # The command's name is in parentheses and may hold anything; the state is the first field after it.
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {namespace} {pid} {fields[18]}"


def is_gone(process: str | None) -> bool:
    """Return whether a process is known to have ended: it ran in this boot and namespace and is gone."""
    this_process = process_name(os.getpid())
    if process is None or this_process is None or process.rsplit(" ", 2)[0] != this_process.rsplit(" ", 2)[0]:
        return False
    return process_name(int(process.split()[-2])) != process


def _last_number(store: Store, layout: Layout) -> int:
    """Return the number of the last record, or 0 if there is none."""
    numbers = (layout.parse_lease_key(entry.key) for entry in store.list(layout.lease_folder))
    return max((number for number in numbers if number is not None), default=0)


def _encode(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record), indent=1).encode()


def _decode(data: bytes) -> LeaseRecord:
    return LeaseRecord(**json.loads(data))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
