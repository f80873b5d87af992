"""Local and in-memory stores behave alike, and single files are read by their location."""

import errno
import os

import pytest

from camworker.errors import ChangedError, UsageError
from camworker.storage.local import LocalStore
from camworker.storage.memory import MemoryStore
from camworker.storage.uris import entry_of, local_path, open_store, open_uri, read_uri

# Stores must not parse keys as URLs, patterns or shell words.
ODD_KEYS = [
    "a b.bin",
    "a#b?c.bin",
    "100%25.bin",
    'it\'s "q".bin',
    "größe/日本.bin",
    "a+b&c;d/[x]*.bin",
    "a:b.bin",
]


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return LocalStore(tmp_path / "root") if request.param == "local" else MemoryStore()


def keys(store, prefix=""):
    return sorted(entry.key for entry in store.list(prefix))


def test_create_then_read(store):
    assert store.create("a/b/c.bin", b"data") is True
    assert store.read("a/b/c.bin") == b"data"
    assert store.exists("a/b/c.bin")
    with store.open("a/b/c.bin") as file:
        assert (file.seek(2), file.read()) == (2, b"ta")


def test_create_is_once(store):
    store.create("a.bin", b"first")
    assert store.create("a.bin", b"second") is False
    assert store.read("a.bin") == b"first"


def test_create_is_once_for_the_same_bytes_too(store):
    data = b"the very same object"
    assert [store.create("a.bin", data) for _ in range(2)] == [True, False]


def test_an_empty_object_is_an_object(store):
    assert store.create("empty", b"") is True
    assert (store.exists("empty"), store.read("empty")) == (True, b"")


def test_missing(store):
    assert not store.exists("nowhere/a.bin")
    with pytest.raises(FileNotFoundError):
        store.read("nowhere/a.bin")
    with pytest.raises(FileNotFoundError), store.open("nowhere/a.bin"):
        pass
    assert keys(store, "nowhere") == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_are_plain_text(store, key):
    assert store.create(key, key.encode())
    assert store.read(key) == key.encode()
    with store.open(key) as file:
        assert file.read() == key.encode()
    assert keys(store) == [key]
    assert not store.create(key, b"")


def test_list_is_by_folder(store):
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        store.create(key, key.encode())
    # A prefix is a folder, so "a" is not the start of "ab"; with or without its slash.
    assert keys(store, "a") == keys(store, "a/") == ["a/1", "a/b/2"]
    assert keys(store, "a/b") == ["a/b/2"]
    assert keys(store, "a/1") == []


def test_a_listing_has_sizes(store):
    store.create("a/one", b"1")
    store.create("a/three", b"333")
    assert {entry.key: entry.size for entry in store.list("a")} == {"a/one": 1, "a/three": 3}


def test_a_folder_is_not_an_object(store):
    store.create("a/b", b"")
    assert not store.exists("a")


def read_by_open(uri, identity=None):
    with open_uri(uri, identity) as file:
        return file.read()


@pytest.mark.parametrize("read", [read_uri, read_by_open])
def test_reading_checks_the_identity(tmp_path, read):
    path = tmp_path / "a b#1.bin"
    path.write_bytes(b"old")
    planned = entry_of(str(path))
    assert (planned.key, planned.size) == (str(path), 3)
    assert read(str(path)) == read(str(path), planned.identity) == b"old"

    path.write_bytes(b"new")  # The size is equal, so only the modification time differs.
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        read(str(path), planned.identity)
    assert read(str(path)) == b"new"


@pytest.mark.parametrize("name", [read_uri, read_by_open, entry_of])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        name(str(tmp_path / "nowhere"))


def test_an_s3_uri_is_not_a_local_path():
    with pytest.raises(UsageError, match=r"s3://bucket/key: this has to be a local path"):
        local_path("s3://bucket/key")


def test_a_listed_object_is_read_with_its_identity(store):
    store.create("a/b.bin", b"data")
    (entry,) = store.list("a")
    assert store.read(entry.key, entry.identity) == b"data"
    with store.open(entry.key, entry.identity) as file:
        assert file.read() == b"data"
    for use in (store.read, store.open):
        with pytest.raises(ChangedError):
            use(entry.key, f"{entry.identity}0")
        with pytest.raises(FileNotFoundError):
            use("a/c.bin", entry.identity)


@pytest.mark.parametrize("limit", [3, 4])
def test_a_file_over_the_limit_is_not_read(tmp_path, limit):
    (tmp_path / "a").write_bytes(b"data")
    if limit == 4:
        assert read_uri(str(tmp_path / "a"), limit=limit) == b"data"
    else:
        with pytest.raises(OSError, match="4 bytes, over 3") as caught:
            read_uri(str(tmp_path / "a"), limit=limit)
        assert caught.value.errno == errno.EFBIG


def test_a_store_is_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        open_store(str(tmp_path / "file"))
    assert open_store(str(tmp_path / "new")).create("a", b"1")
    assert (tmp_path / "new/a").read_bytes() == b"1"
