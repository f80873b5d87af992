"""Exceptions that camworker raises on purpose, and `Failure`, the result for an image without a prediction.

```
CamworkerError            exit code 1
├── UsageError            2  arguments, files or configuration cannot work; nothing was started
│   └── NetworkError      2  a network or its weights were refused
├── CommitError           3  a part cannot be committed, or another writer's part disagrees with the plan
├── LeaseHeldError        4  another run holds the output
├── CorruptedError        5  committed bytes are missing or altered
└── ChangedError          1  an object was replaced after it was planned
```

The command line prints every error of this tree in one line and exits with its `exit_code`.

An image that cannot be read or decoded is an expected outcome and not an exception: functions return a
`Failure`, which becomes that image's row.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

Status = Literal[
    "ok",
    "decode_error",
    "unsupported",
    "too_large",
    "read_error",
    "changed",
    "poison",
    "map_overflow",
    "removed",
]
STATUSES: tuple[Status, ...] = get_args(Status)


class CamworkerError(Exception):
    """Base class of every error that camworker raises on purpose.

    Attributes:
        exit_code: The exit code of a command that ends with this error.
    """

    exit_code: ClassVar[int] = 1


class UsageError(CamworkerError):
    """Arguments, files or configuration that cannot work.

    The message is one line that says what to change.

    Args:
        message: What is wrong.
        parameter: The parameter of the called function that has to change, if there is one. The command line
            adds the option of the same name to the message, so library code need not know its options.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class NetworkError(UsageError):
    """A network or its weights cannot give class activation maps; the message says why."""


class CommitError(CamworkerError):
    """A part cannot be committed, or what is committed differs from the plan."""

    exit_code: ClassVar[int] = 3


class LeaseHeldError(CamworkerError):
    """Another run holds the lease; the message names its host and process and when the lease expires."""

    exit_code: ClassVar[int] = 4


class CorruptedError(CamworkerError):
    """Committed bytes are missing, cut short or altered; the message is one line that names the file."""

    exit_code: ClassVar[int] = 5


class ChangedError(CamworkerError):
    """The identity of an object differs from the planned one: it was replaced in the meantime."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The result for an image that has no prediction.

    Attributes:
        status: The status of the image's row; never "ok".
        reason: An explanation for people, one line.
    """

    status: Status
    reason: str

    def __post_init__(self) -> None:
        if self.status == "ok" or self.status not in STATUSES:
            raise ValueError(f"a failure cannot have the status {self.status!r}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
