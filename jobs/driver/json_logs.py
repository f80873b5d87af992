"""Logs of drivers and workers as JSON lines that name the recipe, generation and shard."""

import json
import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

LOG: Final = logging.getLogger("camworker")
# Without a handler, Python would print warnings as text. Commands that log call write_json_lines.
LOG.addHandler(logging.NullHandler())

_NO_CONTEXT: Final[Mapping[str, str | int | None]] = {"recipe": None, "generation": None, "shard": None}
_CONTEXT: Final[ContextVar[Mapping[str, str | int | None]]] = ContextVar("log_context", default=_NO_CONTEXT)

# Attributes that every record has. All others are `extra` fields, except those that Ray adds (_ray_...).
_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Format a record as one JSON object: time, level, message, context, extra fields, logger and process."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        extra = {
            name: value
            for name, value in vars(record).items()
            if name not in _STANDARD and not name.startswith("_")
        }
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_CONTEXT.get(),
            **extra,
            "logger": record.name,
            "host": socket.gethostname(),
            "pid": record.process,
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str, ensure_ascii=False)


def write_json_lines(level: int = logging.INFO) -> None:
    """Write camworker's log records of this level and above to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOG.handlers = [handler]
    LOG.setLevel(level)
    LOG.propagate = False  # the root logger of a Ray worker has a text handler


@contextmanager
def log_context(**fields: str | int) -> Iterator[None]:
    """Add recipe, generation or shard to the records that this thread writes inside the context."""
    token = _CONTEXT.set({**_CONTEXT.get(), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)
