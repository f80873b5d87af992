"""The token of a local Ray: created once and readable by its owner only."""

import re
from pathlib import Path

import pytest

from jobs import ray_cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder, and no token in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_created_once_and_private(home: Path) -> None:
    ray_cluster._make_token()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    ray_cluster._make_token()
    assert path.read_text() == token
    assert list(path.parent.iterdir()) == [path]


def test_a_token_readable_by_all_is_kept_and_made_private(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("f" * 64)
    path.chmod(0o644)
    ray_cluster._make_token()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("f" * 64, 0o600)


def test_no_token_is_created_if_the_environment_has_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    ray_cluster._make_token()
    assert not list(home.iterdir())
