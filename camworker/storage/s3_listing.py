"""Listing S3: a page at a time, several folders at once where that helps, in no order that counts."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple

from camworker.storage import s3_boto3
from camworker.storage.s3_boto3 import ObjectInfo, Page

_THREADS: Final = 16
# A page that reaches into more folders than this shows small ones: asking for each would cost more.
_MOST_FOLDERS: Final = 8


class _Step(NamedTuple):
    """One request to make: the page of prefix that token stands for."""

    prefix: str
    token: str | None = None


def list_objects(bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    """Every object whose key starts with prefix, once, in no particular order.

    Large folders are listed side by side; what waits to be taken is bounded by a page a thread. Raises
    OSError when a page cannot be had: whoever got part of a listing is told that it is one.
    """
    waiting = [_Step(prefix)]
    running: set[Future[tuple[list[ObjectInfo], list[_Step]]]] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < _THREADS:
                    running.add(pool.submit(_take, bucket, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    found, more = future.result()
                    waiting += more
                    if waiting and len(running) < _THREADS:
                        running.add(pool.submit(_take, bucket, waiting.pop()))  # it comes while we yield
                    yield from found
        finally:
            for future in running:
                future.cancel()


def _take(bucket: str, step: _Step) -> tuple[list[ObjectInfo], list[_Step]]:
    """Make a request: the objects that it gave, and the requests that are to follow."""
    page = s3_boto3.list_page(bucket, step.prefix, token=step.token)
    if page.token is None:
        return page.objects, []
    if step.token is None and (folders := _large_folders(bucket, step.prefix, page)):
        # Of folders whose content is listed by itself, this page is left out.
        return folders.objects, [_Step(folder) for folder in folders.prefixes]
    return page.objects, [_Step(step.prefix, page.token)]


def _large_folders(bucket: str, prefix: str, page: Page) -> Page | None:
    """The next level of folders and the objects beside them, where listing these one by one pays off."""
    seen = {folder for found in page.objects if (folder := _folder(found.key, prefix)) is not None}
    if not 0 < len(seen) <= _MOST_FOLDERS:
        return None
    folders = s3_boto3.list_page(bucket, prefix, folders=True)
    return folders if folders.token is None and folders.prefixes else None


def _folder(key: str, prefix: str) -> str | None:
    """The folder of the next level below prefix that a key lies in."""
    name, slash, _ = key[len(prefix) :].partition("/")
    return name if slash else None
