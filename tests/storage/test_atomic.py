"""Files and folders that are written under a hidden name and renamed when they are complete."""

import os
import re

import pytest

from camworker.storage.atomic import write_then_rename


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new/a.bin"
    with write_then_rename(target) as draft:
        draft.write_bytes(b"data")
        assert re.fullmatch(r"\.a\.bin\.[0-9a-f]{32}\.draft", draft.name)
        assert draft.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"data"
    with write_then_rename(target, suffix=".pt2") as draft:
        draft.write_bytes(b"next")
        assert draft.suffix == ".pt2"
    assert target.read_bytes() == b"next"
    assert os.listdir(target.parent) == ["a.bin"]


def test_a_folder_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    target, fsync, steps = tmp_path / "rows", os.fsync, []

    def recording_fsync(descriptor):
        steps.append((os.path.basename(os.path.realpath(f"/proc/self/fd/{descriptor}")), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with write_then_rename(target, durable=True) as draft:
        (draft / "a").mkdir(parents=True)
        (draft / "a/b").write_bytes(b"")
    assert sorted(steps[:2]) == [("a", False), ("b", False)]
    assert steps[2:] == [(draft.name, False), (tmp_path.name, True)]
    assert sorted(path.name for path in target.rglob("*")) == ["a", "b"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_neither_draft_nor_target(tmp_path, is_folder):
    def stop():
        with write_then_rename(tmp_path / "a") as draft:
            if is_folder:
                draft.mkdir()
                (draft / "b").write_bytes(b"")
            else:
                draft.write_bytes(b"")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert os.listdir(tmp_path) == []
