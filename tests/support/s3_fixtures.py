"""Fixtures around S3. A module loads them as the plugin "support.s3_fixtures"."""

from collections.abc import Iterator

import pytest

from support.fake_s3 import SmallS3, small_s3
from support.seaweedfs import Server, found_by_boto3, s3_server


@pytest.fixture(scope="session")
def real_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that all tests of a session share."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def in_s3(real_s3: Server) -> Iterator[Server]:
    """boto3 finds the server, and nothing of the machine's own credentials."""
    with found_by_boto3(real_s3.environment):
        yield real_s3


@pytest.fixture(scope="module")
def small_server() -> Iterator[SmallS3]:
    """boto3 finds a small S3."""
    with small_s3() as store, found_by_boto3(store.environment):
        yield store


@pytest.fixture
def small(small_server: SmallS3) -> SmallS3:
    """The small S3, empty, which does what the test tells it."""
    small_server.reset()
    return small_server
