"""Faults of S3, made by a fake server: bounded retries, lost answers, listings that break off."""

import multiprocessing
import pickle
import threading

import pyarrow as pa
import pytest

from camworker.errors import ChangedError, UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import open_fetchers, read_file
from camworker.inputs.sources import open_source
from camworker.storage import s3, s3_boto3
from camworker.storage.s3 import S3Client, S3Store
from camworker.storage.s3_obstore import ObstoreClient
from camworker.storage.store import require_conditional_writes
from camworker.storage.uris import Connections, entry_of, open_store, open_uri, read_uri
from support.factories import CLASSES, make_items

pytest_plugins = ["support.s3_fixtures"]

CLIENT = S3Client()  # It connects when the first fixture has set the environment.

DATA = bytes(range(256)) * 200
# The first key goes through obstore, the second through boto3.
KEYS = ["a/b.bin", "a//b\n.bin"]
ODD = ["a//b", "/a", "a/", "x/../y.jpg", "./a", "..", "line\nfeed", "dots..", "%41", "a b+c'\"#?", "ä\x7f"]


@pytest.fixture(autouse=True)
def brief_pauses(fake_s3, monkeypatch):
    """Make the pauses between retries short."""
    monkeypatch.setattr(s3, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)


def requests(fake_s3, method="", key=""):
    return len([r for r in fake_s3.requests if r.startswith(f"{method} bucket/{key}".lstrip())])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("fault", [500, 503, "reset", "short"])
def test_a_read_is_retried(fake_s3, key, fault):
    fake_s3.objects[f"bucket/{key}"] = DATA
    fake_s3.fault = lambda method, name, count: fault if count < 2 else None
    assert CLIENT.read("bucket", key) == DATA
    assert requests(fake_s3, "GET") == 3


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("fault", [503, "reset"])
def test_retries_are_bounded(fake_s3, key, fault, monkeypatch):
    fake_s3.objects[f"bucket/{key}"] = DATA
    fake_s3.fault = lambda method, name, count: fault
    with pytest.raises(OSError, match=r"^s3://bucket/a"):
        CLIENT.read("bucket", key)
    assert requests(fake_s3, "GET") == s3_boto3.ATTEMPTS
    with pytest.raises(OSError, match=r"^s3://bucket/a"):
        CLIENT.create("bucket", key, DATA)
    assert requests(fake_s3, "PUT") == s3_boto3.ATTEMPTS


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("fault", [500, 503, "reset", "lost"])
def test_a_create_whose_answer_was_lost_succeeds(fake_s3, key, fault):
    fake_s3.fault = lambda method, name, count: fault if method == "PUT" and count < 1 else None
    assert CLIENT.create("bucket", key, DATA) is True
    assert fake_s3.objects == {f"bucket/{key}": DATA}
    assert CLIENT.create("bucket", key, b"other") is False
    assert fake_s3.objects == {f"bucket/{key}": DATA}


@pytest.mark.parametrize("key", KEYS)
def test_a_conflict_is_retried(fake_s3, key):
    """409 means that another PUT is under way. If that fails, ours succeeds."""
    fake_s3.fault = lambda method, name, count: 409 if method == "PUT" and count < 2 else None
    assert CLIENT.create("bucket", key, DATA) is True
    assert fake_s3.objects == {f"bucket/{key}": DATA}
    fake_s3.fault = lambda method, name, count: 409 if method == "PUT" else None
    assert CLIENT.create("bucket", key, b"other") is False
    fake_s3.objects.clear()
    with pytest.raises(OSError, match="refuses to create"):
        CLIENT.create("bucket", key, DATA)


@pytest.mark.parametrize("key", ODD)
def test_keys_are_not_normalised(fake_s3, key):
    store = S3Store("bucket", "p", CLIENT)
    assert store.create(key, key.encode())
    assert fake_s3.objects == {f"bucket/p/{key}": key.encode()}
    assert not store.create(key, b"other")
    entry = CLIENT.entry("bucket", f"p/{key}")
    assert store.read(key, entry.identity) == key.encode()
    with store.open(key) as file:
        assert (file.read(1), file.read()) == (key.encode()[:1], key.encode()[1:])
    assert [(entry.key, entry.size) for entry in store.list()] == [(key, len(key.encode()))]
    assert [entry.identity for entry in store.list()] == [entry.identity]


@pytest.mark.parametrize("key", KEYS)
def test_a_replaced_object_is_changed(fake_s3, key):
    uri = f"s3://bucket/{key}"
    fake_s3.objects[f"bucket/{key}"] = DATA
    identity = entry_of(uri).identity
    assert read_uri(uri, identity) == DATA
    with open_uri(uri, identity) as file:
        assert file.read() == DATA
    for other in (DATA[::-1], DATA[:-1]):
        fake_s3.objects[f"bucket/{key}"] = other
        assert read_file(uri, identity).status == "changed"
        with pytest.raises(ChangedError), open_uri(uri, identity):
            pass
    # Without ETags the size is compared.
    with pytest.raises(ChangedError):
        read_uri(uri, f"-{len(DATA)}")
    assert read_uri(uri, f"-{len(DATA) - 1}") == DATA[:-1]
    del fake_s3.objects[f"bucket/{key}"]
    assert read_file(uri, identity).status == "read_error"


@pytest.mark.parametrize("key", KEYS)
def test_an_open_file_is_one_version(fake_s3, key):
    fake_s3.objects[f"bucket/{key}"] = DATA * 10
    with open_store("s3://bucket").open(key) as file:
        assert file.read(10) == DATA[:10]
        fake_s3.objects[f"bucket/{key}"] = DATA[::-1] * 10
        file.seek(len(DATA) * 5)
        with pytest.raises(ChangedError):
            file.read(len(DATA))


@pytest.mark.parametrize("key", KEYS)
def test_an_object_over_the_limit_is_not_read(fake_s3, key, monkeypatch):
    fake_s3.objects[f"bucket/{key}"] = DATA
    monkeypatch.setattr("camworker.inputs.fetch.MAX_FILE_BYTES", len(DATA) - 1)
    failure = read_file(f"s3://bucket/{key}")
    assert failure.status == "too_large"
    assert str(len(DATA)) in failure.reason


def test_an_empty_object_is_a_file(fake_s3):
    fake_s3.objects["bucket/empty"] = b""
    with open_uri("s3://bucket/empty") as file:
        assert (file.read(), file.seek(0, 2)) == (b"", 0)


# Listings


@pytest.mark.parametrize("fault", [500, "reset", 403])
def test_a_listing_that_breaks_off_raises(fake_s3, fault):
    fake_s3.objects |= {f"bucket/p/{n:03d}.jpg": b"" for n in range(30)}
    fake_s3.page = 10
    fake_s3.fault = lambda method, name, count: fault if count >= 2 else None
    entries = open_store("s3://bucket/p").list()
    with pytest.raises((OSError, UsageError), match=r"s3://bucket/p"):
        list(entries)


@pytest.mark.parametrize("fault", [500, "reset"])
def test_an_incomplete_listing_is_not_planned(fake_s3, fault):
    fake_s3.objects |= {f"bucket/p/{n:03d}.jpg": b"" for n in range(30)}
    fake_s3.page = 10
    assert open_source("s3://bucket/p", CLASSES).items.num_rows == 30
    requests_before = len(fake_s3.requests)
    fake_s3.fault = lambda method, name, count: fault if len(fake_s3.requests) > requests_before + 2 else None
    with pytest.raises(UsageError, match="could not be listed completely, nothing was planned"):
        open_source("s3://bucket/p", CLASSES)


def test_a_listing_is_complete_after_transient_failures(fake_s3):
    fake_s3.objects |= {f"bucket/p/{n:03d}.jpg": b"" for n in range(30)}
    fake_s3.page = 10
    fake_s3.fault = lambda method, name, count: 503 if count in (1, 2, 4) else None
    assert len({entry.key for entry in open_store("s3://bucket/p").list()}) == 30


# The probe


def test_a_store_with_conditional_writes_passes_the_probe(fake_s3):
    store = open_store("s3://bucket/out")
    require_conditional_writes(store, "s3://bucket/out")
    first = dict(fake_s3.objects)
    assert [name.removeprefix("bucket/out/") for name in first] == ["ledger/probe"]
    # Another probe is one PUT and creates nothing.
    before = requests(fake_s3, "PUT")
    require_conditional_writes(store, "s3://bucket/out")
    assert requests(fake_s3, "PUT") == before + 1
    assert fake_s3.objects == first


def test_a_store_that_replaces_is_refused(fake_s3):
    fake_s3.conditions = False
    for _ in range(2):
        with pytest.raises(UsageError, match=r"s3://bucket/out replaces ") as caught:
            require_conditional_writes(open_store("s3://bucket/out"), "s3://bucket/out")
        assert str(caught.value).isprintable()
        assert caught.value.parameter == "single_writer"


@pytest.mark.parametrize("fault", [403, 501, "reset"])
def test_a_store_that_cannot_be_written_is_refused(fake_s3, fault):
    fake_s3.fault = lambda method, name, count: fault
    with pytest.raises(UsageError, match="cannot write to s3://bucket/out: ") as caught:
        require_conditional_writes(open_store("s3://bucket/out"), "s3://bucket/out")
    assert str(caught.value).isprintable()


# Processes and threads


def _read_in_child(store, queue):
    queue.put((ObstoreClient.is_usable(), store.read("a"), store.create("a.new", b"child")))


def test_a_forked_child_can_read(fake_s3):
    """obstore's threads do not exist in a forked child, and waiting for them would never end."""
    fake_s3.objects["bucket/a"] = DATA
    store = open_store("s3://bucket")
    assert store.read("a") == DATA
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    try:
        assert queue.get(timeout=30) == (False, DATA, True)
    finally:
        child.kill()
        child.join()
    assert ObstoreClient.is_usable()
    assert store.read("a") == DATA


def test_objects_are_fetched_ahead(fake_s3):
    """Fetching starts before a fetcher is called: eight requests are under way at the same time."""
    fake_s3.objects |= {f"bucket/{n}.jpg": b"%d" % n for n in range(8)}
    together = threading.Barrier(8)
    met = []
    fake_s3.fault = lambda method, name, count: met.append(together.wait(20))
    items = make_items(*(f"{n}.jpg" for n in range(8)))
    uris = pa.array([f"s3://bucket/{n}.jpg" for n in range(8)])
    items = items.set_column(items.schema.get_field_index("uri"), "uri", uris)
    functions = list(open_fetchers(items, ReadPolicy(check_identity=False)))
    assert [function() for function in functions] == [b"%d" % n for n in range(8)]
    assert sorted(met) == list(range(8))


def test_a_pickled_store_opens_its_own_connections(fake_s3):
    fake_s3.objects["bucket/p/a"] = DATA
    store = open_store("s3://bucket/p")
    assert store.read("a") == DATA
    assert pickle.loads(pickle.dumps(store)).read("a") == DATA


def test_stores_share_connections_that_are_passed(fake_s3):
    connections = Connections()
    one, other = (open_store(f"s3://bucket/{name}", connections) for name in "ab")
    assert one.create("x", b"1")
    assert other.create("x", b"2")
    assert read_uri("s3://bucket/a/x", connections=connections) == b"1"
    assert one._client is other._client is connections.s3
