"""Objects on a real S3 server: conditional writes, races, odd keys, network packages, wrong configuration."""

import re
import threading

import pytest
import torch

from camworker.classes import Classes
from camworker.errors import NetworkError, UsageError
from camworker.networks.package import build_for_training, build_package, load, save
from camworker.networks.registry import create_network
from camworker.storage import s3_boto3
from camworker.storage.s3 import S3Client, S3Store
from camworker.storage.uris import entry_of, exists_uri, open_store, read_uri
from support.seaweedfs import BUCKET

pytest_plugins = ["support.s3_fixtures"]
pytestmark = pytest.mark.usefixtures("in_s3")


@pytest.fixture
def root(request):
    """A prefix that only this test uses."""
    return f"s3://{BUCKET}/{request.node.name}"


def keys(store, prefix=""):
    return sorted(entry.key for entry in store.list(prefix))


def test_create_read_exists(root):
    store = open_store(root)
    assert isinstance(store, S3Store)
    assert not store.exists("a/b.bin")
    assert store.create("a/b.bin", b"data") is True
    assert store.exists("a/b.bin")
    assert store.read("a/b.bin") == read_uri(f"{root}/a/b.bin") == b"data"
    with store.open("a/b.bin") as file:
        assert (file.seek(2), file.read()) == (2, b"ta")
    assert store.create("empty", b"") is True
    assert store.read("empty") == b""


def test_missing(root):
    store = open_store(root)
    with pytest.raises(FileNotFoundError, match=f"^{root}/nowhere: "):
        read_uri(f"{root}/nowhere")
    assert not exists_uri(f"{root}/nowhere")
    with pytest.raises(FileNotFoundError), store.open("nowhere"):
        pass
    assert keys(store) == []
    with pytest.raises(FileNotFoundError):
        entry_of(f"{root}/nowhere")
    # A folder is not an object.
    store.create("a/b", b"")
    assert not store.exists("a")
    # A missing bucket is a configuration error, not a missing object.
    with pytest.raises(OSError, match=r"^s3://no-such-bucket/a: .*NoSuchBucket") as caught:
        read_uri("s3://no-such-bucket/a")
    assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(UsageError, match="names no bucket"):
        open_store("s3://")


def test_create_is_once(root):
    store = open_store(root)
    store.create("a.bin", b"first")
    assert store.create("a.bin", b"second") is False
    assert store.read("a.bin") == b"first"
    # Equal bytes count as created: they may be our own, sent again after a lost answer.
    assert store.create("a.bin", b"first") is True


def test_one_of_sixteen_wins_a_race(root, caplog):
    store = open_store(root)
    start = threading.Barrier(16)
    won = [None] * 16

    def race(number):
        start.wait()
        won[number] = store.create("part.parquet", b"by %02d" % number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]
    assert store.read("part.parquet") == b"by %02d" % won.index(True)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    "key", ["a b.bin", "a#b?c.bin", "100%25.bin", "a+b&c;d=[x].bin", "größe/日本.bin", "a:b 'c' \"d\".bin"]
)
def test_keys_are_plain_text(real_s3, key):
    folder = f"odd {len(key)}#?%20"
    store = S3Store(BUCKET, folder, S3Client())
    assert store.create(key, key.encode())
    assert store.exists(key)
    assert store.read(key) == key.encode()
    assert key in keys(store)
    assert not store.create(key, b"other")
    # Another client finds the object under the same name.
    answer = real_s3.client().get_object(Bucket=BUCKET, Key=f"{folder}/{key}")
    assert answer["Body"].read() == key.encode()


def test_list_is_by_folder_and_has_sizes(root):
    store = open_store(f"{root}/")
    for key in ("a/1", "a/b/22", "ab/3", "4"):
        store.create(key, key.encode())
    assert keys(store) == ["4", "a/1", "a/b/22", "ab/3"]
    # A prefix is a folder, so "a" is not the start of "ab"; with or without its slash.
    assert keys(store, "a") == keys(store, "a/") == ["a/1", "a/b/22"]
    assert {entry.key: entry.size for entry in store.list("a")} == {"a/1": 3, "a/b/22": 6}


def test_the_identity_changes_with_the_content(real_s3, root):
    def put(data):
        real_s3.client().put_object(Bucket=BUCKET, Key=f"{root.split('/')[-1]}/a", Body=data)
        (entry,) = open_store(root).list()
        return entry.identity

    first, second, again = put(b"old"), put(b"new"), put(b"old")
    assert first == again != second
    assert first.endswith("-3")


def test_more_than_a_page_of_keys(root):
    store = open_store(root)

    def fill(start):
        for number in range(start, 1005, 8):
            store.create(f"{number:04d}", b"")

    threads = [threading.Thread(target=fill, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(store) == [f"{number:04d}" for number in range(1005)]


@pytest.fixture(scope="module")
def package():
    torch.manual_seed(0)
    state = create_network("timm:resnet10t", classes=3).model.state_dict()
    return build_package(
        "timm:resnet10t", state, Classes(("cat", "dog", "größe #1")), provenance={"by": "test"}
    )


def test_a_network_package(root, package, tmp_path):
    save(package, f"{root}/cats and #dogs")
    for again in (load(f"{root}/cats and #dogs"), load(weights=f"{root}/cats and #dogs/")):
        assert again.fingerprint == package.fingerprint
        assert again.classes == package.classes
        assert again.provenance == {"by": "test"}
    with pytest.raises(NetworkError, match="already"):
        save(package, f"{root}/cats and #dogs")
    # The same two files as in a local folder.
    save(package, tmp_path)
    for name in ("network.json", "weights.safetensors"):
        assert read_uri(f"{root}/cats and #dogs/{name}") == (tmp_path / name).read_bytes()


def test_weights_of_a_backbone(root, package, tmp_path):
    state = package.network.model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    open_store(root).create("w.pth", (tmp_path / "w.pth").read_bytes())
    network = build_for_training("timm:resnet10t", 9, backbone_weights=f"{root}/w.pth")
    filled = network.model.state_dict()
    assert all(torch.equal(filled[key], state[key]) for key in network.backbone_keys())
    with pytest.raises(NetworkError, match=r"cannot be read: .*/nowhere\.pth"):
        build_for_training("timm:resnet10t", 9, backbone_weights=f"{root}/nowhere.pth")


def refusal(network):
    with pytest.raises(NetworkError) as caught:
        load(network)
    message = str(caught.value)
    assert message.isprintable()
    assert network in message
    return message


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "403|Forbidden|SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "403|Forbidden|InvalidAccessKeyId"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "Could not connect"),
    ],
)
def test_refused_access_and_an_absent_server_are_one_line(root, monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_boto3, "ATTEMPTS", 1)
    assert re.search(reason, refusal(f"{root}/package"))


def test_missing_credentials_are_one_line(root, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert "credentials" in refusal(f"{root}/package")
