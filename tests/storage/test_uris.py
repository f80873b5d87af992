"""Locations: which are refused, without repeating the secrets in them, and how they are compared."""

import os

import pytest

from camworker.errors import UsageError
from camworker.inputs.tabular import column_types
from camworker.storage.uris import (
    check_location_form,
    find_outside,
    is_below,
    normalize_location,
    open_store,
    open_uri,
    read_uri,
    split_s3_uri,
)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket/a b/#?%41.jpg", ("bucket", "a b/#?%41.jpg")),
        ("s3://bucket//x/../y", ("bucket", "/x/../y")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/what?versionId=1", ("bucket", "what?versionId=1")),
        ("s3://bucket/user@host:1/http://x", ("bucket", "user@host:1/http://x")),
    ],
)
def test_a_uri_is_plain_text(uri, parts):
    check_location_form(uri)
    assert split_s3_uri(uri) == parts


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://host/a.jpg",
        "file:///etc/passwd",
        "FTP://host/a",
        "s3a://bucket/key",
        "S3://bucket/key",
    ],
)
@pytest.mark.parametrize("use", [check_location_form, normalize_location, open_store, read_uri])
def test_another_scheme_is_refused(location, use):
    with pytest.raises(UsageError, match=r"cannot be read or written: name a local path or s3://bucket/key"):
        use(location)


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIACANARY:canary@bucket/key",
        "s3://canary@bucket/key",
        "s3://bucket:canary/key",
        "https://user:canary@host/a.jpg",
        "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential=canary&X-Amz-Signature=canary",
        "s3://bucket/a.jpg?X-Amz-Signature=canary",
        "s3://bucket/a.jpg?AWSAccessKeyId=canary&Signature=canary&Expires=1",
        "https://account.blob.core.windows.net/c/a.jpg?sv=1&sig=canary",
    ],
)
def test_credentials_are_refused_and_not_repeated(location):
    for use in (check_location_form, normalize_location, open_store, column_types):
        with pytest.raises(UsageError, match="holds credentials") as caught:
            use(location)
        assert "canary" not in str(caught.value).lower()
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "path", ["photos/a:b.jpg", "/x/http://y", "a?sig=1.jpg", "file:/etc/passwd", "1://a"]
)
def test_a_path_may_look_like_a_uri(path):
    assert normalize_location(path) == os.path.abspath(path)


def test_a_normalized_prefix_has_no_slash_at_its_end():
    assert normalize_location("s3://bucket/a/") == "s3://bucket/a"
    assert normalize_location("s3://bucket/") == "s3://bucket"
    with pytest.raises(UsageError, match="names no bucket"):
        normalize_location("s3://")


@pytest.mark.parametrize(
    ("location", "folder", "expected"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/", True),
        ("s3://bucket/a/b", "s3://bucket/a", True),
        ("s3://bucket/ab", "s3://bucket/a", False),
        ("s3://bucket/a", "s3://bucket", True),
    ],
)
def test_below(location, folder, expected):
    assert is_below(location, folder) is expected


def test_the_first_path_outside_all_roots(tmp_path):
    for name in ("one", "two/deep", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in").symlink_to(tmp_path / "two")
    one, two, elsewhere = (str(tmp_path / name) for name in ("one", "two", "elsewhere"))
    assert find_outside([f"{one}/a.jpg", f"{two}/deep/b.jpg"], [one, two]) is None
    assert find_outside([f"{one}/a.jpg", f"{two}/b.jpg", f"{elsewhere}/c.jpg"], [one]) == 1
    assert find_outside(["/etc/passwd"], [one, two]) == 0
    assert find_outside([f"{one}.jpg"], [one]) == 0
    assert find_outside([f"{one}/a.jpg"], []) == 0
    # The owner of a root made the links in it. A root may be given by a link to it or by its real path.
    assert find_outside([f"{one}/out/c.jpg"], [one]) is None
    assert find_outside([f"{tmp_path}/in/deep/b.jpg"], [two]) is None
    assert find_outside([f"{two}/b.jpg"], [f"{tmp_path}/in"]) is None


def test_a_local_path_with_a_query_is_a_path(tmp_path):
    (tmp_path / "a?sig=1.jpg").write_bytes(b"data")
    with open_uri(str(tmp_path / "a?sig=1.jpg")) as file:
        assert file.read() == b"data"
