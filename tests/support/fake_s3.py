"""A fake S3 server in this process, which fails as a test requests and checks no credentials.

It supports the requests that camworker makes: GET with ranges and If-Match, HEAD, PUT with If-None-Match, and
ListObjectsV2. Tests of correct behaviour use SeaweedFS (seaweedfs.py).
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

# The fault of a request: an error status, a connection reset before the request is handled ("reset"), half a
# body ("short"), or a connection reset after the request was handled ("lost").
Fault = int | Literal["reset", "short", "lost"]


@dataclass
class FakeS3:
    """The state of the server.

    Attributes:
        endpoint: The URL of the server.
        lock: Guards the state.
        objects: The bytes of each object by "bucket/key".
        requests: The requests in the order of their arrival, such as "GET bucket/key".
        fault: Returns the fault of a request; its arguments are the method, "bucket/key", and the number of
            earlier requests with this method and key.
        conditions: Whether the server respects If-None-Match.
        page: The number of keys in a page of a listing.
    """

    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, bytes] = field(init=False)
    requests: list[str] = field(init=False)
    fault: Callable[[str, str, int], Fault | None] = field(init=False)
    conditions: bool = field(init=False)
    page: int = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Delete all objects and faults."""
        self.objects, self.requests = {}, []
        self.fault = lambda method, name, count: None
        self.conditions, self.page = True, 1000

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which boto3 finds the server."""
        return {
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def serve_fake_s3() -> Iterator[FakeS3]:
    """Serve on a free port of the loopback interface until the block ends."""
    store = FakeS3()
    handler = type("Handler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", 0), handler)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(data: bytes) -> str:
    """Return the ETag that S3 gives an object: its MD5 in quotes."""
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # With a shorter queue, simultaneous connections wait for a second.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FakeS3

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the requests are recorded."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path.lstrip("/"))
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {name}"
        with self.store.lock:
            count = self.store.requests.count(request)
            self.store.requests.append(request)
        fault = self.store.fault(self.command, name, count)
        if isinstance(fault, int):
            self._fail(fault, "Fault")
        elif fault == "reset":
            self.connection.close()
            self.close_connection = True
        elif self.command == "PUT":
            self._put(name, data, lost=fault == "lost")
        elif "list-type" in url.query:
            self._list(name.strip("/"), parse_qs(url.query, keep_blank_values=True))
        else:
            self._get(name, short=fault == "short")

    def _put(self, name: str, data: bytes, *, lost: bool) -> None:
        with self.store.lock:
            taken = name in self.store.objects and self.store.conditions
            if taken and self.headers.get("If-None-Match") == "*":
                self._fail(412, "PreconditionFailed")
                return
            if "aws-chunked" in self.headers.get("Content-Encoding", ""):
                data = _dechunked(data)
            self.store.objects[name] = data
        if lost:
            self.connection.close()
            self.close_connection = True
        else:
            self._answer(200, b"", {"ETag": etag(data)})

    def _get(self, name: str, *, short: bool) -> None:
        with self.store.lock:
            data = self.store.objects.get(name)
        required_etag = self.headers.get("If-Match")
        if data is None:
            self._fail(404, "NoSuchKey")
        elif required_etag and required_etag.strip('"') != etag(data).strip('"'):
            self._fail(412, "PreconditionFailed")
        else:
            headers = {"ETag": etag(data), "Last-Modified": "Mon, 02 Nov 2026 00:00:00 GMT"}
            status, size = 200, len(data)
            if requested := self.headers.get("Range"):
                first, _, last = requested.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
                if start >= size:
                    self._fail(416, "InvalidRange")
                    return
                status, data = 206, data[start:stop]
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            self._answer(status, data, headers, short=short)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = bytes.fromhex(query.get("continuation-token", [""])[0]).decode()
        with self.store.lock:
            names = sorted(self.store.objects)
        keys = [name.partition("/")[2] for name in names if name.startswith(f"{bucket}/{prefix}")]
        entries: dict[str, str | None] = {}
        for key in keys:
            folder, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entries.setdefault(prefix + folder + cut if cut else key, None if cut else f"{bucket}/{key}")
        page = [item for item in entries.items() if item[0] > after]
        more, page = len(page) > self.store.page, page[: self.store.page]
        body = "".join(
            f"<CommonPrefixes><Prefix>{quote(text)}</Prefix></CommonPrefixes>"
            if name is None
            else f"<Contents><Key>{quote(text)}</Key><ETag>{etag(self.store.objects[name])}</ETag>"
            f"<Size>{len(self.store.objects[name])}</Size></Contents>"
            for text, name in page
        )
        token = f"<NextContinuationToken>{page[-1][0].encode().hex()}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}"
            f"</IsTruncated>{token}{body}</ListBucketResult>"
        )
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _fail(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, short: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if short else body)
        if short:
            self.close_connection = True


def _dechunked(data: bytes) -> bytes:
    """Return the content of a body in aws-chunked encoding, in which a size in hex precedes each chunk."""
    content = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            break
        content, data = content + data[:length], data[length + 2 :]
    return content
