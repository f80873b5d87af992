"""A proxy between camworker and S3 that causes every kind of fault at a fixed rate, and counts them.

It forwards requests unchanged except for the Connection header, so that signatures stay valid. Faults take
turns instead of being random, so a test that passes has met all of them.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

# The faults of every tenth request that reads or lists, and of every third that writes, in turn.
READ_FAULTS: Final = ("500", "503", "reset", "short")
WRITE_FAULTS: Final = ("lost", "503", "lost", "reset", "lost", "500")
_EVERY_READ, _EVERY_WRITE = 10, 3
_BUSY: Final = b"<Error><Code>%s</Code><Message>chaos</Message></Error>"


@dataclass
class FaultyProxy:
    """The state of the proxy.

    Attributes:
        endpoint: The URL that clients use.
        faults: The number of faults so far by kind.
        down: Whether every request fails.
        reads: The number of requests that read or list.
        writes: The number of requests that write.
    """

    endpoint: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    down: bool = False
    reads: int = 0
    writes: int = 0

    def next_fault(self, method: str, target: str) -> str | None:
        """Return the fault of the next request, or None."""
        if self.down:
            return self._count("503")
        if "continuation-token=" in target and not self.faults["second page"]:
            return self._count("second page")
        if method == "PUT":
            self.writes += 1
            turn, rest = divmod(self.writes, _EVERY_WRITE)
            return None if rest else self._count(WRITE_FAULTS[turn % len(WRITE_FAULTS)])
        self.reads += 1
        turn, rest = divmod(self.reads, _EVERY_READ)
        return None if rest else self._count(READ_FAULTS[turn % len(READ_FAULTS)])

    def _count(self, kind: str) -> str:
        self.faults[kind] += 1
        return kind


@contextmanager
def faulty_proxy(behind: str) -> Iterator[FaultyProxy]:
    """Run the proxy on a free loopback port, in front of the server at an endpoint."""
    proxy, loop = FaultyProxy(), asyncio.new_event_loop()
    upstream = urlsplit(behind).hostname, urlsplit(behind).port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await _answer(proxy, upstream, reader, writer)
        writer.transport.abort() if not writer.is_closing() else None

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, backlog=256))
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


async def _answer(
    proxy: FaultyProxy,
    upstream: tuple[str | None, int | None],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer one request, or cause its fault, and close the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode().split(" ")
    fields = {name.strip().lower(): value.strip() for name, _, value in (li.partition(b":") for li in lines)}
    if b"expect" in fields:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))

    kind = proxy.next_fault(method, target)
    if kind == "reset":
        writer.transport.abort()
        return
    if kind in ("500", "503", "second page"):
        status, code = (b"500", b"InternalError") if kind == "500" else (b"503", b"SlowDown")
        text = b"" if method == "HEAD" else _BUSY % code
        writer.write(
            b"HTTP/1.1 %s chaos\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(text))
        )
        writer.write(text)
        await writer.drain()
        writer.close()
        return
    kept = [li for li in lines if not li.lower().startswith((b"connection:", b"expect:"))]
    answer = await _forward(upstream, b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + body)
    if kind == "lost":
        writer.transport.abort()
        return
    headers, _, content = answer.partition(b"\r\n\r\n")
    if kind == "short":
        answer = headers + b"\r\n\r\n" + content[: len(content) // 2]
    writer.write(answer)
    await writer.drain()
    writer.close()


async def _forward(upstream: tuple[str | None, int | None], request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*upstream)
    writer.write(request)
    await writer.drain()
    answer = await reader.read(-1)
    writer.close()
    return answer
