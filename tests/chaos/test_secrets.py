"""Runs write and print no secret; Ray listens on the loopback interface only and requires a token."""

import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from camworker.storage.uris import open_store
from chaos.incidents import in_processes
from chaos.scene import Scene
from support.cli_runner import ENVIRONMENT, camworker, photographs, start
from support.fatal_decoder import HANG
from support.seaweedfs import BUCKET, Server

pytest_plugins = ["support.s3_fixtures", "chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

_LISTENING = "0A"
TOKEN = "5ec4e7" * 10 + "beef"
# A client that tries to join the cluster of a run.
KNOCK = """
import sys, ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False  # Otherwise Ray replaces the address.
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("in:", len(ray.nodes()))
"""


@pytest.fixture
def ray_home() -> Iterator[Path]:
    """A folder for Ray's session and logs, with a short path because the names of sockets are limited."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    shutil.rmtree(folder)


def forms_of(secret: str) -> set[bytes]:
    """Return the forms of a secret in a file: plain, quoted for a URL, and in base64 at each alignment."""
    plain = {secret, quote(secret), quote_plus(secret)}
    encoded = {base64.b64encode(b"." * n + secret.encode())[4:-4] for n in range(3)}
    return {text.encode() for text in plain} | encoded


def test_no_secret_is_written_or_printed(scene: Scene, in_s3: Server, ray_home: Path, tmp_path: Path) -> None:
    """Keys come from a profile; one run succeeds and S3 refuses another, both with --verbose."""
    secret = in_s3.environment["AWS_SECRET_ACCESS_KEY"]
    root, out = f"s3://{BUCKET}/secrets", f"s3://{BUCKET}/secrets/out"
    store = open_store(root)
    for path in photographs(tmp_path / "in", 8, side=96).iterdir():
        store.create(f"in/{path.name}", path.read_bytes())
    store.create("in/broken.jpg", b"\xff\xd8\xff")
    (tmp_path / "truth.csv").write_text("image_id,label,xmin,ymin,xmax,ymax\n0000.jpg,1,0,0,50,50\n")
    wrong = "another secret of the tests"
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[good]\naws_access_key_id=tester\naws_secret_access_key={secret}\n"
        f"[bad]\naws_access_key_id=tester\naws_secret_access_key={wrong}\naws_session_token={wrong}\n"
    )
    environment = {
        **{k: v for k, v in in_s3.environment.items() if not k.startswith(("AWS_ACCESS", "AWS_SECRET"))},
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "RAY_TMPDIR": str(ray_home),
        "RAY_AUTH_TOKEN": TOKEN,
        "AWS_PROFILE": "good",
    }
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delitem(ENVIRONMENT, name, raising=False)
        run = Scene(f"{root}/in", scene.package).arguments(out, "--verbose")
        truth = ("--truth", tmp_path / "truth.csv", "--truth-classes", "index")
        for command, profile, code in (
            (run, "good", 0),
            (("status", out), "good", 0),
            (("verify", out, "--verbose"), "good", 0),
            (("summarize", out, *truth, "--report", tmp_path / "report"), "good", 0),
            (("preview", out, "--to", tmp_path / "preview"), "good", 0),
            (run, "bad", 2),
            (("summarize", out, *truth), "bad", 2),
        ):
            done = camworker(*command, environment={**environment, "AWS_PROFILE": profile})
            assert done.code == code, done.err
            printed.append(done.out + done.err)
    assert any(Path(ray_home).rglob("*.log")), "Ray's logs are elsewhere"

    written = {"streams": "\n".join(printed).encode()}
    written |= {entry.key: store.read(entry.key) for entry in store.list("out")}
    for folder in (ray_home, tmp_path / "report", tmp_path / "preview"):
        written |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(written) > 20
    for form in forms_of(secret) | forms_of(wrong) | forms_of(TOKEN):
        assert not [name for name, content in written.items() if form in content]
    # The search would find the secret.
    assert any(form in credentials.read_bytes() for form in forms_of(secret))


def test_ray_listens_on_loopback_and_requires_a_token(scene: Scene, ray_home: Path, tmp_path: Path) -> None:
    """Without any configuration the run creates the token in the home folder."""
    folder, out, home = photographs(tmp_path / "in", 8, side=96), tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (folder / "0007.jpg").write_bytes((folder / "0007.jpg").read_bytes() + HANG)
    mark = uuid.uuid4().hex
    nothing = dict.fromkeys(("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"), "")
    with pytest.MonkeyPatch.context() as patch:
        for name in nothing:
            patch.delitem(ENVIRONMENT, name)
        environment = {**in_processes(), "HOME": str(home), "RAY_TMPDIR": str(ray_home), "CHAOS_RUN": mark}
        run = start(
            *Scene(folder, scene.package).arguments(out, "--shard-size", "2"), environment=environment
        )
    try:
        deadline = time.monotonic() + 300
        while not list(out.glob("predictions/*/*.parquet")):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = processes_with(f"CHAOS_RUN={mark}")
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family}
        assert any(b"gcs_server" in name for name in names.values())
        listening = listening_sockets(family)
        assert {host for _, host, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
        token = (home / ".ray" / "auth_token").read_text().strip()
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        assert not [name for name in names.values() if token.encode() in name]
        (port,) = [port for pid, _, port in listening if b"gcs_server" in names[pid]]
        for mode, given, enters in (
            ("token", token, True),
            ("token", "0" * 64, False),
            ("disabled", "", False),
        ):
            done = knock(f"127.0.0.1:{port}", {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": given})
            assert ("in: 1" in done.stdout) == enters, (mode, done.stdout, done.stderr[-1000:])
    finally:
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=120)


def knock(address: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Try to join a cluster as a client; one that is refused may retry until it is stopped."""
    command = ["timeout", "30", sys.executable, "-c", KNOCK, address]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def processes_with(variable: str) -> set[int]:
    """Return the ids of the processes with this variable in their environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.add(int(path.name))
        except OSError:
            continue  # The process ended or belongs to another user.
    return found


def listening_sockets(pids: set[int]) -> list[tuple[int, str, int]]:
    """Return process id, address and port of all TCP sockets on which processes listen; see proc(5)."""
    sockets = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTENING:
                digits, port = local.split(":")
                words = struct.unpack(f">{len(digits) // 8}I", bytes.fromhex(digits))
                host = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
                sockets[f"socket:[{inode}]"] = (host, int(port, 16))
    found = []
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # The descriptor was closed in the meantime.
                found += [(pid, *sockets[link])] if (link := os.readlink(descriptor)) in sockets else []
    return found
