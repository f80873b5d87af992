"""Objects as local files: races, killed writers, durability and circular symbolic links."""

import os
import signal
import subprocess
import sys

import pytest

from camworker.storage.local import LocalStore


def keys(store, prefix=""):
    return sorted(entry.key for entry in store.list(prefix))


_RACER = """
import sys
from camworker.storage.local import LocalStore
store, writer = LocalStore(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for n in range(50):
    if store.create(f"target/{n}", f"{writer}-{n}.".encode() * 4000):
        print(n, flush=True)
"""


def test_racing_processes_have_one_winner_each(tmp_path):
    store = LocalStore(tmp_path)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, tmp_path, str(me)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(8)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()

    def whole(data):
        return data == data[: data.find(b".") + 1] * 4000

    while any(racer.poll() is None for racer in racers):
        # At any moment, every file that a reader finds below the target is complete.
        assert all(whole(path.read_bytes()) for path in (tmp_path / "target").rglob("*"))
    won = {}
    for me, racer in enumerate(racers):
        names = racer.communicate()[0].split()
        assert racer.returncode == 0
        for n in names:
            assert won.setdefault(n, me) == me, f"{n} has two winners"
    assert sorted(won, key=int) == [str(n) for n in range(50)]
    assert all(store.read(f"target/{n}") == f"{me}-{n}.".encode() * 4000 for n, me in won.items())
    assert len(keys(store, "target")) == 50


def test_bytes_are_durable_before_the_name_is_there(tmp_path, monkeypatch):
    target, link, fsync, steps = tmp_path / "target", os.link, os.fsync, []

    def recording_fsync(descriptor):
        steps.append(("fsync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recording_link(source, destination):
        assert os.path.getsize(source) == 4
        assert list(target.iterdir()) == []
        steps.append(("link", str(source)))
        link(source, destination)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "link", recording_link)
    LocalStore(tmp_path).create("target/a", b"data")
    made, (first, draft), (second, linked), *rest = steps
    assert made == ("fsync", str(tmp_path))  # The new folder is synced in its parent.
    assert (first, second) == ("fsync", "link")
    assert draft == linked
    assert rest == [("fsync", str(target))]


def test_no_draft_is_left(tmp_path):
    store = LocalStore(tmp_path)
    store.create("target/a", b"1")
    store.create("target/a", b"2")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]


@pytest.fixture
def killed(tmp_path):
    """A store whose writer was killed after writing all bytes, before the name was created."""
    code = (
        "import os, sys, time\nfrom camworker.storage.local import LocalStore\n"
        "os.link = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        "LocalStore(sys.argv[1]).create('target/a', b'data' * 1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    return LocalStore(tmp_path)


def test_a_killed_writer_leaves_no_object(killed):
    assert not killed.exists("target/a")
    assert list((killed.root / "target").rglob("*")) == []
    assert killed.create("target/a", b"next")
    assert killed.read("target/a") == b"next"


def test_a_killed_writers_draft_is_not_listed(killed):
    assert keys(killed) == []


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_to_a_folder_above_ends(tmp_path, target):
    store = LocalStore(tmp_path)
    store.create("a/b/c", b"")
    (tmp_path / "a/b/up").symlink_to(target)
    assert keys(store) == ["a/b/c"]


def test_links_to_each_other_end(tmp_path):
    store = LocalStore(tmp_path)
    store.create("a/1", b"")
    store.create("b/2", b"")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    assert keys(store, "a") == ["a/1", "a/b/2"]


def test_a_broken_link_is_skipped(tmp_path):
    store = LocalStore(tmp_path)
    store.create("a/1", b"")
    (tmp_path / "a/gone").symlink_to("nowhere")
    assert keys(store, "a") == ["a/1"]


def test_a_link_to_itself_is_skipped(tmp_path):
    store = LocalStore(tmp_path)
    store.create("a/1", b"")
    (tmp_path / "a/self").symlink_to("self")
    assert keys(store, "a") == ["a/1"]
