"""Record the addresses that a run's processes connect to, by an audit hook of hooked/sitecustomize.py."""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

_VARIABLE = "CHAOS_CONNECTIONS"


def recorded_in(file: Path) -> dict[str, str]:
    """Return environment variables with which a command appends external addresses to a file, a line each."""
    file.touch()
    return {_VARIABLE: str(file)}


def install() -> None:
    """Install the audit hook if the environment requests it."""
    if file := os.environ.get(_VARIABLE):
        sys.addaudithook(lambda event, arguments: _record(event, arguments, file))


def _record(event: str, arguments: tuple[Any, ...], file: str) -> None:
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    if host is not None and not _is_loopback(host):
        with open(file, "a") as record:
            record.write(f"{event} {host} {sys.argv}\n")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "None", "")
