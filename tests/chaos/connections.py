"""A record of where a run's processes connect to: by an audit hook, put in by hooked/sitecustomize.py."""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

_VARIABLE = "CHAOS_CONNECTIONS"


def recorded_in(file: Path) -> dict[str, str]:
    """What a command's environment has to hold: each address outside this machine becomes a line of file."""
    file.touch()
    return {_VARIABLE: str(file)}


def install() -> None:
    """Record, if the environment asks for it."""
    if file := os.environ.get(_VARIABLE):
        sys.addaudithook(lambda event, arguments: _note(event, arguments, file))


def _note(event: str, arguments: tuple[Any, ...], file: str) -> None:
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    if host is not None and not _is_here(host):
        with open(file, "a") as record:
            record.write(f"{event} {host} {sys.argv}\n")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "None", "")
