"""Hostile images, names, classes, weights and URIs give a row or a refusal, and no other effect."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camworker.classes import Classes
from chaos.connections import recorded_in
from chaos.incidents import in_processes
from chaos.scene import NETWORK, Scene, rows_of, save_network
from support.cli_runner import ENVIRONMENT, camworker
from support.fake_s3 import serve_fake_s3
from support.seaweedfs import BUCKET

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

SCRIPT = '<script>alert("x")</script>'
METADATA = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
# Names of files that hold an ordinary image.
NAMES = (
    *(
        "a b.jpg",
        "#1.jpg",
        "what?.jpg",
        "%2e%2e%2f.jpg",
        'it\'s "quoted".jpg',
        "größe→尺寸.jpg",
        "$(touch x).jpg",
    ),
    *("<img src=x onerror=alert(1)>.jpg", "..jpg.jpg", "-rf.jpg", "line\nfeed.jpg", "back\\slash.jpg"),
)
# Keys in S3, which are not paths, and ids in a table.
KEYS = ("up/../../../x.jpg", "../y.jpg", "/z.jpg", "a//b.jpg", *(f"names/{name}" for name in NAMES))


def png(width: int, height: int, bits: int = 1, *, body: bool = True) -> bytes:
    """Return a black PNG whose rows are compressed a thousandfold, or only its header."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(bytes(height * (1 + -(-width * bits // 8))), 9) if body else b""
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.fixture(scope="module")
def photograph(scene: Scene) -> bytes:
    return (Path(scene.folder) / "0000.jpg").read_bytes()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a script as the name of a class."""
    folder = tmp_path_factory.mktemp("hostile") / "package"
    save_network(folder, Classes((SCRIPT, "../../up", *(f"class {number}" for number in range(8)))))
    return folder


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which every connection to another machine is recorded."""
    return {**in_processes(), **recorded_in(tmp_path / "connections")}


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def connections_in(folder: Path) -> list[str]:
    """Return the recorded connections except those of Ray's dashboard, which looks for the cloud it is in."""
    lines = (folder / "connections").read_text().splitlines()
    return [line for line in lines if "/ray/dashboard/dashboard.py" not in line]


def test_the_record_of_connections_works(tmp_path: Path, watched: dict[str, str]) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", code], env={**ENVIRONMENT, **watched}, check=False)
    assert "192.0.2.1" in connections_in(tmp_path)[0]


def test_images_and_names(package: Path, photograph: bytes, tmp_path: Path, watched: dict[str, str]) -> None:
    home = tmp_path / "home"
    folder = home / "in"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(photograph)
    bombs = {
        "bomb.png": png(10_000, 10_001, 8),
        "at the limit.png": png(10_000, 10_000),
        "claims.png": png(60_000, 60_000, body=False),
        "long.png": png(1, 20_000),
    }
    assert len(bombs["bomb.png"]) < 100_000
    for name, data in bombs.items():
        (folder / name).write_bytes(data)
    (home / "truth.csv").write_text('image_id,label,xmin,ymin,xmax,ymax\n"a b.jpg",0,0,0,9,9\n')
    before = everything_in(tmp_path)

    out = home / "out"
    done = Scene(folder, package).localize(out, environment=watched)
    assert done.code == 0, done.err
    rows = rows_of(out)
    statuses = dict(zip(rows["image_id"].to_pylist(), rows["status"].to_pylist(), strict=True))
    too_large = dict.fromkeys(("bomb.png", "claims.png", "long.png"), "too_large")
    assert statuses == {**dict.fromkeys((*NAMES, "at the limit.png"), "ok"), **too_large}
    assert rows.num_rows == len(statuses)

    reports = {
        "preview": (out, "--to", home / "preview"),
        "summarize": (
            out,
            "--truth",
            home / "truth.csv",
            "--truth-classes",
            "index",
            "--report",
            home / "report",
        ),
        "export": (out, "--format", "yolo", "--to", home / "yolo"),
        "units": (out, "--to", home / "units", "--class", SCRIPT, "--weights", package),
    }
    for command, arguments in reports.items():
        done = camworker(command, *arguments, environment=watched)
        assert done.code == 0, done.err
    written = everything_in(tmp_path) - before
    assert all(
        name.startswith(("home/out", *(f"home/{r}" for r in ("preview", "report", "yolo", "units"))))
        for name in written
    )
    pages = [path for path in home.rglob("*.html") if path.is_file()]
    assert len(pages) >= 3
    for page in pages:
        text = page.read_text()
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "Content-Security-Policy" in text
    assert not connections_in(tmp_path)


def test_keys_that_look_like_paths(package: Path, photograph: bytes, tmp_path: Path) -> None:
    """A key in S3 is plain text (SeaweedFS refuses some of these), and an id in a table is not a path."""
    with serve_fake_s3() as store:
        store.objects |= {f"{BUCKET}/hostile/{key}": photograph for key in KEYS}
        check_keys(package, photograph, store.environment, tmp_path)


def check_keys(package: Path, photograph: bytes, environment: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": [f"../{key}" for key in KEYS], "image": [photograph] * len(KEYS)}), table)
    for source, expected in ((f"s3://{BUCKET}/hostile", set(KEYS)), (table, {f"../{key}" for key in KEYS})):
        out, to = (tmp_path / folder / Path(source).name for folder in ("outs", "exports"))
        to.parent.mkdir(exist_ok=True)
        before = everything_in(tmp_path)
        done = Scene(source, package).localize(out, environment=environment)
        assert done.code == 0, done.err
        rows = rows_of(out)
        assert sorted(rows["image_id"].to_pylist()) == sorted(expected)
        assert rows["status"].unique().to_pylist() == ["ok"]
        exported = camworker(
            *("export", out, "--format", "yolo", "--to", to, "--json"),
            environment=environment,
        )
        assert exported.code == 0, exported.err
        assert exported.json["images"] == len(expected)
        allowed = ("outs", "exports")
        assert all(name.startswith(allowed) for name in everything_in(tmp_path) - before)
        assert len(list(to.rglob("*.jpg"))) == len(expected)


def test_weights_that_carry_code(scene: Scene, tmp_path: Path, watched: dict[str, str]) -> None:
    class Writes:
        def __reduce__(self):
            return Path.touch, (tmp_path / "code was run",)

    torch.save({"weight": Writes()}, tmp_path / "evil.pth")
    (tmp_path / "names.txt").write_text("a\nb\n")
    before = everything_in(tmp_path)
    how = ("--network", NETWORK)
    package = ("--class-names", tmp_path / "names.txt", "--output", tmp_path / "package")
    for command in (
        ("localize", scene.folder, "--output", tmp_path / "out", "--weights", tmp_path / "evil.pth", *how),
        ("package", tmp_path / "evil.pth", *how, *package),
    ):
        done = camworker(*command, environment=watched)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
    assert everything_in(tmp_path) == before
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "code was run").exists(), "the pickle is not harmful, so the test proves nothing"


@pytest.mark.parametrize("uri", [METADATA, "file:///etc/passwd", "/etc/passwd", "../outside.jpg"])
def test_uris_outside_the_input(scene: Scene, tmp_path: Path, watched: dict[str, str], uri: str) -> None:
    manifest = tmp_path / "in" / "manifest.csv"
    manifest.parent.mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"")
    manifest.write_text(f"uri\n{uri}\n")
    done = Scene(manifest, scene.package).localize(tmp_path / "out", environment=watched)
    assert (done.code, done.out) == (2, ""), done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not connections_in(tmp_path)


def test_the_metadata_service_as_a_location(scene: Scene, tmp_path: Path, watched: dict[str, str]) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("image_id,label,xmin,ymin,xmax,ymax\n")
    for command in (
        ("localize", METADATA, "--output", tmp_path / "out"),
        ("localize", scene.folder, "--output", METADATA),
        ("localize", scene.folder, "--output", tmp_path / "out", "--weights", METADATA),
        ("localize", scene.folder, "--output", tmp_path / "out", "--image-labels", METADATA),
    ):
        done = camworker(*command, environment=watched)
        assert (done.code, done.out) == (2, ""), done.err
        assert "Traceback" not in done.err
    assert not connections_in(tmp_path)
    assert not (tmp_path / "out").exists()
