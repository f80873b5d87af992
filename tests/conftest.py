"""Fixtures that several test modules share."""

import io
import os
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from camworker import weights
from camworker.classes import Classes
from camworker.gap import GapNetwork
from camworker.ledger import Ledger, Plan
from camworker.localizer import Localizer
from camworker.plan import write_generation
from camworker.shard import run_shard
from camworker.store import MemoryStore
from camworker.weights import Package, Preprocessing

# The same examples on every run, and no deadline: a busy machine is no failure.
hypothesis.settings.register_profile("tests", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# Ray reads these once a process, when it is first imported.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core for each process: more threads than cores wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray runs in one process, one after the other; else a file's tests stay together."""
    for item in items:
        group = "ray" if any(item.iter_markers("ray")) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


TINY_CLASSES = Classes(("cat", "dog", "bird"))


def tiny_package() -> Package:
    """A GAP network of two convolutions and three classes, the same weights every time.

    Its map is 8 high and 4 wide: where rows and columns are mixed up, the shape tells.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=(2, 4), padding=1),
            nn.ReLU(),
        )
        head = nn.Linear(16, len(TINY_CLASSES))
    network = GapNetwork(
        nn.ModuleDict({"body": body, "head": head}),
        features=body,
        logits=lambda features_BCHW: head(features_BCHW.mean((2, 3))),
        classifier=head,
        classes=len(TINY_CLASSES),
        pooling="avg",
    )
    half = (0.5, 0.5, 0.5)
    return Package("tiny", network.eval(), TINY_CLASSES, Preprocessing(32, half, half), "softmax", "tiny")


@pytest.fixture(scope="session")
def tiny_localizer() -> Localizer:
    """Small batches, so that a dozen images are several; float32, so that equal means equal."""
    return Localizer(tiny_package(), device="cpu", precision="float32", batch_size=4)


@pytest.fixture(scope="session")
def default_package() -> Package:
    """The default network with its real weights, for reading; float32 on the CPU."""
    return weights.load()


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """An image file of Pillow's format kind; options as for Image.save()."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def ledger() -> Ledger:
    """An empty ledger in memory."""
    return Ledger(MemoryStore(), "r0123456789ab")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven photographs, 00.png to 10.png, each of another width."""
    root = tmp_path / "in"
    root.mkdir()
    for n in range(11):
        (root / f"{n:02d}.png").write_bytes(photograph(n, width=20 + n))
    return root


def photograph(seed: int, width: int = 30, height: int = 40, kind: str = "PNG") -> bytes:
    """An image file of coloured patches, another one for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return encode(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST), kind)


def run_generation(
    ledger: Ledger, localizer: Localizer, items: pa.Table, *, generation: int = 1, size: int = 100
) -> Plan:
    """Plan items as a generation and commit all its parts."""
    ledger.write_recipe({"of": ledger.recipe})
    plan = write_generation(ledger, generation, items, size, verify=True)
    for shard in range(plan.shards):
        run_shard(ledger, plan, shard, localizer, decoders=2, about={}, on_batch=lambda statuses: None)
    return plan
