"""Fixtures of S3 servers; a test module loads them as the plugin "support.s3_fixtures"."""

from collections.abc import Iterator

import pytest

from support.fake_s3 import FakeS3, serve_fake_s3
from support.seaweedfs import Server, found_by_boto3, s3_server


@pytest.fixture(scope="session")
def real_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SeaweedFS server that all tests of a session share."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def in_s3(real_s3: Server) -> Iterator[Server]:
    """The SeaweedFS server, configured in the environment without any credentials of this machine."""
    with found_by_boto3(real_s3.environment):
        yield real_s3


@pytest.fixture(scope="module")
def fake_s3_server() -> Iterator[FakeS3]:
    """A fake S3 server, configured in the environment."""
    with serve_fake_s3() as store, found_by_boto3(store.environment):
        yield store


@pytest.fixture
def fake_s3(fake_s3_server: FakeS3) -> FakeS3:
    """The fake S3 server, empty and without faults."""
    fake_s3_server.reset()
    return fake_s3_server
