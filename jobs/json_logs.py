"""Logs for machines: a JSON object a line, which names recipe, generation and shard."""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

LOG: Final = logging.getLogger("camworker")
LOG.addHandler(logging.NullHandler())  # where nobody asks for lines there are none, not of warnings either

_NOWHERE: Final = {"recipe": None, "generation": None, "shard": None}
_WHERE: Final[ContextVar[Mapping[str, Any]]] = ContextVar("where", default=_NOWHERE)

# What every record has; anything else was given as extra, but for what Ray adds to records (_ray_...).
_OWN: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line: what happened when, where in the work, what was given as extra, who says so."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_WHERE.get(),
            **{name: value for name, value in vars(record).items() if name not in _OWN and name[0] != "_"},
            "logger": record.name,
            "host": socket.gethostname(),
            "pid": record.process,
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str, ensure_ascii=False)


def write_lines(level: int = logging.INFO) -> None:
    """Write the records of camworker, of this level and above, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOG.handlers = [handler]
    LOG.setLevel(level)
    LOG.propagate = False  # Ray's workers have a handler of their own further up, for text


def in_job() -> bool:
    """Whether this is the driver of a Ray job, whose standard error is collected by machines."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def log_context(**names: Any) -> Iterator[None]:
    """Records inside, of this thread, say recipe, generation or shard as given here."""
    token = _WHERE.set({**_WHERE.get(), **names})
    try:
        yield
    finally:
        _WHERE.reset(token)
