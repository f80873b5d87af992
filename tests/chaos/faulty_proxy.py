"""A proxy between us and S3 that gives every kind of trouble, each so often, and counts what it gave.

Requests go through byte by byte but for the Connection header, so that signatures hold. Trouble is dealt
out by turns and not by chance: a test that passes has seen all of it.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

# What befalls every tenth request that reads or lists, in turn; and every third that writes.
READ_TROUBLE: Final = ("500", "503", "reset", "short")
WRITE_TROUBLE: Final = ("lost", "503", "lost", "reset", "lost", "500")
_EVERY_READ, _EVERY_WRITE = 10, 3
_BUSY: Final = b"<Error><Code>%s</Code><Message>chaos</Message></Error>"


@dataclass
class FaultyProxy:
    """endpoint: where clients are sent. given: trouble so far, by kind. down: whether nothing answers."""

    endpoint: str = ""
    given: Counter[str] = field(default_factory=Counter)
    down: bool = False
    reads: int = 0
    writes: int = 0

    def trouble(self, method: str, target: str) -> str | None:
        """What is to become of a request."""
        if self.down:
            return self._give("503")
        if "continuation-token=" in target and not self.given["second page"]:
            return self._give("second page")
        if method == "PUT":
            self.writes += 1
            turn, rest = divmod(self.writes, _EVERY_WRITE)
            return None if rest else self._give(WRITE_TROUBLE[turn % len(WRITE_TROUBLE)])
        self.reads += 1
        turn, rest = divmod(self.reads, _EVERY_READ)
        return None if rest else self._give(READ_TROUBLE[turn % len(READ_TROUBLE)])

    def _give(self, kind: str) -> str:
        self.given[kind] += 1
        return kind


@contextmanager
def faulty_proxy(behind: str) -> Iterator[FaultyProxy]:
    """Serve on a free port of the loopback interface, in front of the server at that endpoint."""
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
    """One request, and its answer or its trouble; then the connection ends."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode().split(" ")
    fields = {name.strip().lower(): value.strip() for name, _, value in (li.partition(b":") for li in lines)}
    if b"expect" in fields:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))

    kind = proxy.trouble(method, target)
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
    answer = await _ask(upstream, b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + body)
    if kind == "lost":
        writer.transport.abort()
        return
    headers, _, content = answer.partition(b"\r\n\r\n")
    if kind == "short":
        answer = headers + b"\r\n\r\n" + content[: len(content) // 2]
    writer.write(answer)
    await writer.drain()
    writer.close()


async def _ask(upstream: tuple[str | None, int | None], request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*upstream)
    writer.write(request)
    await writer.drain()
    answer = await reader.read(-1)
    writer.close()
    return answer
