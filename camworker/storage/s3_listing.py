"""Listing a prefix in S3: page by page, with several folders in parallel if they are large."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple

from camworker.storage.s3_boto3 import Boto3Client, ObjectInfo, Page

_THREADS: Final = 16
# If one page covers more folders than this, they are small, and a request for each would cost more.
_MAX_FOLDERS: Final = 8


class _Request(NamedTuple):
    """A page to request: the first of a prefix, or the one that a continuation token names."""

    prefix: str
    token: str | None = None


def list_objects(client: Boto3Client, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """Yield every object whose key starts with a prefix, once, in no particular order.

    Large folders are listed in parallel. At most one page for each thread waits to be consumed.

    Raises:
        OSError: A page could not be read; what was yielded before is incomplete.
    """
    waiting = [_Request(prefix)]
    running: set[Future[tuple[list[ObjectInfo], list[_Request]]]] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < _THREADS:
                    running.add(pool.submit(_send, client, bucket, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    objects, next_requests = future.result()
                    waiting += next_requests
                    if waiting and len(running) < _THREADS:
                        # The next page is on its way while the consumer works on this one.
                        running.add(pool.submit(_send, client, bucket, waiting.pop()))
                    yield from objects
        finally:
            for future in running:
                future.cancel()


def _send(client: Boto3Client, bucket: str, request: _Request) -> tuple[list[ObjectInfo], list[_Request]]:
    """Send a request and return its objects and the requests that have to follow."""
    page = client.list_page(bucket, request.prefix, token=request.token)
    if page.token is None:
        return page.objects, []
    if request.token is None and (folders := _large_folders(client, bucket, request.prefix, page)):
        # The objects of this page are left out here: they are listed again with their folders.
        return folders.objects, [_Request(folder) for folder in folders.prefixes]
    return page.objects, [_Request(request.prefix, page.token)]


def _large_folders(client: Boto3Client, bucket: str, prefix: str, page: Page) -> Page | None:
    """Return the folders at the next level and the objects next to them, or None if they are not worth it."""
    names = {name for entry in page.objects if (name := _next_folder(entry.key, prefix)) is not None}
    if not 0 < len(names) <= _MAX_FOLDERS:
        return None
    folders = client.list_page(bucket, prefix, folders=True)
    return folders if folders.token is None and folders.prefixes else None


def _next_folder(key: str, prefix: str) -> str | None:
    """Return the folder directly below the prefix that a key is in, or None if it is in none."""
    name, slash, _ = key[len(prefix) :].partition("/")
    return name if slash else None
