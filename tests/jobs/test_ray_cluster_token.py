"""The token that a local Ray asks for: made once, for its owner's eyes only."""

import re
from pathlib import Path

import pytest

from jobs import ray_cluster as cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of somebody who has set nothing up."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_it_is_made_once_and_private(home: Path) -> None:
    cluster._make_token()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    cluster._make_token()
    assert path.read_text() == token
    assert list(path.parent.iterdir()) == [path]


def test_one_that_all_could_read_is_kept_and_closed(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("f" * 64)
    path.chmod(0o644)
    cluster._make_token()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("f" * 64, 0o600)


def test_a_token_that_was_given_is_enough(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    cluster._make_token()
    assert not list(home.iterdir())
