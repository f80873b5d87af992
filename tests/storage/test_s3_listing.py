"""Listings of S3: every key once, and large folders in parallel."""

import hypothesis
import pytest
from hypothesis import strategies as st

from camworker.storage.s3 import S3Client
from camworker.storage.uris import open_store, split_s3_uri

pytest_plugins = ["support.s3_fixtures"]

CLIENT = S3Client()  # It connects when the first fixture has set the environment.


def listed(uri):
    return sorted(entry.key for entry in CLIENT.list(*split_s3_uri(uri)))


def put(fake_s3, *keys):
    fake_s3.objects |= {f"bucket/{key}": key.encode() for key in keys}


names = st.text(st.sampled_from("ab/ %é"), min_size=1, max_size=6)


@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    keys=st.sets(names, max_size=25), page=st.integers(1, 5), prefix=st.sampled_from(["", "a", "a/"])
)
def test_every_key_is_listed_once(fake_s3, keys, page, prefix):
    fake_s3.reset()
    fake_s3.page = page
    put(fake_s3, *keys)
    assert listed(f"s3://bucket/{prefix}") == sorted(key for key in keys if key.startswith(prefix))


def test_large_folders_are_listed_in_parallel(fake_s3):
    fake_s3.page = 10
    keys = [f"p/{folder}/{n:03d}" for folder in "abc" for n in range(100)] + ["p/beside", "other"]
    put(fake_s3, *keys)
    assert listed("s3://bucket/p/") == sorted(keys)[1:]
    # One page shows that there are large folders, one lists the folders, and ten list each folder.
    assert len(fake_s3.requests) == 1 + 1 + 3 * 10


@pytest.mark.parametrize("folders", [50, 1000])
def test_small_folders_are_not_listed_one_by_one(fake_s3, folders):
    fake_s3.page = 100
    keys = [f"p/{folder:04d}/{n}" for folder in range(folders) for n in range(4)]
    put(fake_s3, *keys)
    assert listed("s3://bucket/p/") == keys
    assert len(fake_s3.requests) == len(keys) // 100


def test_a_listing_is_streamed(fake_s3):
    """The first page is available before the last one, and at most one page is requested ahead."""
    fake_s3.page = 10
    put(fake_s3, *(f"p/{n:03d}" for n in range(100)))
    entries = open_store("s3://bucket/p").list()
    assert next(entries).key == "000"
    entries.close()
    assert len(fake_s3.requests) <= 2


def test_a_folder_marker_is_not_an_entry_of_its_folder(fake_s3):
    put(fake_s3, "p/", "p/a.jpg", "p/b/")
    assert sorted(entry.key for entry in open_store("s3://bucket/p").list()) == ["a.jpg", "b/"]
