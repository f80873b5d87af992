"""The input of the chaos tests: 1,000 small mixed images in 20 shards, and a network that takes seconds.

chaos_fixtures.py creates it once for all tests.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import skimage
import sklearn.datasets
import torch
from PIL import Image

from camworker.classes import Classes
from camworker.dataset import latest
from camworker.networks.package import build_package, save
from camworker.networks.registry import create_network
from support.cli_runner import Finished, camworker
from support.outputs import assert_same_rows

COUNT, SHARDS = 1000, 20
SIZE = COUNT // SHARDS
# Some files are not images, or incomplete, or too large.
STATUSES = {"ok": COUNT - 25, "decode_error": 10, "unsupported": 10, "too_large": 5}
NETWORK = "timm:test_efficientnet"
CLASSES = Classes(tuple(f"class {number}" for number in range(10)))
# With float32 and a fixed batch size, rows of different runs are equal.
HOW = ("--precision", "float32", "--input-size", "128", "--shard-size", str(SIZE), "--batch-size", "10")


@dataclass(frozen=True)
class Scene:
    """A folder or prefix of images and a network package."""

    folder: str | Path
    package: str | Path

    def arguments(self, out: str | Path, *options: str | Path) -> tuple[str | Path, ...]:
        """Return the arguments that localize all images."""
        return ("localize", self.folder, "--output", out, "--weights", self.package, *HOW, "--json", *options)

    def localize(
        self, out: str | Path, *options: str | Path, environment: dict[str, str] | None = None
    ) -> Finished:
        return camworker(*self.arguments(out, *options), environment=environment)


def rows_of(out: str | Path) -> pa.Table:
    """Return the latest rows sorted by image_id."""
    return latest(str(out)).sort_by("image_id")


def assert_whole(out: str | Path, undisturbed: pa.Table) -> None:
    """Check that an output holds every image once, in one generation, with the rows of an undisturbed run."""
    rows = rows_of(out)
    assert rows["generation"].unique().to_pylist() == [1]
    assert_same_rows(rows, undisturbed)


def save_network(folder: Path, classes: Classes) -> None:
    """Save a package of a network with 100,000 random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = create_network(NETWORK, classes=len(classes)).model.state_dict()
    save(build_package(NETWORK, state, classes), folder)


def write_images(folder: Path, count: int = COUNT, seed: int = 0) -> Path:
    """Write crops of photographs, 64 to 160 pixels a side, as 0000.jpg, 0001.png, ...; break every 40th."""
    folder.mkdir()
    sources = [
        *(skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket()),
        *sklearn.datasets.load_sample_images().images,
    ]
    random = np.random.default_rng(seed)
    for number in range(count):
        kind, name = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
        data = _crop(sources[number % len(sources)], random, kind)
        if number % 40 == 39:
            data = _broken(data, number // 40)
        (folder / f"{number:04d}.{name}").write_bytes(data)
    return folder


def _crop(pixels: np.ndarray, random: np.random.Generator, kind: str) -> bytes:
    height, width = (int(length) for length in random.integers(64, 161, 2))
    y, x = (
        random.integers(0, has - of + 1) for has, of in zip(pixels.shape[:2], (height, width), strict=True)
    )
    file = io.BytesIO()
    Image.fromarray(pixels[y : y + height, x : x + width]).save(file, kind)
    return file.getvalue()


def _broken(data: bytes, kind: int) -> bytes:
    """Return a truncated image, an SVG, nothing, text, or an extremely tall image, in turn."""
    if kind % 5 == 4:
        file = io.BytesIO()
        Image.new("L", (1, 2000)).save(file, "PNG")
        return file.getvalue()
    return (data[: len(data) // 2], b"<svg/>", b"", b"a note\n")[kind % 5]
