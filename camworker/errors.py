"""The exception tree, and Failure: the value that an image becomes when it cannot be localized.

CamworkerError
├── UsageError         arguments, files or configuration that cannot work; the command line exits with 2
│   └── NetworkError   a network or its weights were refused
├── CommitError        a part is not what its plan says, or another writer's part disagrees with ours
├── LeaseHeldError     another run works on the same recipe; the command line exits with 4
├── ChangedError       an object is no longer the one that was planned
├── CorruptedError       committed bytes are gone or not as they were; the command line exits with 5
└── MapOverflowError   a class activation map holds a value that float16 cannot

An image that cannot be read or decoded is expected and is no exception: functions return a Failure,
and it becomes a row. Everything else propagates.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal[
    "ok", "decode_error", "unsupported", "too_large", "read_error", "changed", "poison", "removed"
]
STATUSES: tuple[Status, ...] = get_args(Status)


class CamworkerError(Exception):
    """Base of every error that camworker raises on purpose."""


class UsageError(CamworkerError):
    """The caller can mend it; the message is one line that says what to change."""


class NetworkError(UsageError):
    """A network or its weights cannot give class activation maps; the message says why."""


class CommitError(CamworkerError):
    """A part cannot be committed, or what is committed is not what the plan asked for."""


class LeaseHeldError(CamworkerError):
    """Another run holds the lease; the message says which, since when and until when."""


class ChangedError(CamworkerError):
    """The object's identity differs from the planned one: it was replaced in the meantime."""


class CorruptedError(CamworkerError):
    """What was committed is gone, cut short or altered; the message is one line that names it."""


class MapOverflowError(CamworkerError):
    """A map's value lies outside float16; writing it would store an infinity."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no prediction. status is what the row says, reason is for people."""

    status: Status
    reason: str

    def __post_init__(self) -> None:
        if self.status == "ok" or self.status not in STATUSES:
            raise ValueError(f"a failure cannot have the status {self.status!r}")
