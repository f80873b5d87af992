"""Fixtures that several test modules share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from camworker.inference.localizer import Localizer
from camworker.ledger.ledger import Ledger
from camworker.networks.package import NetworkPackage, load
from camworker.storage.memory import MemoryStore
from support.factories import photograph, tiny_package
from support.paths import python_path

# The same examples on every run, and no deadline: a busy machine is no failure.
hypothesis.settings.register_profile("tests", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# Ray reads these once a process, when it is first imported.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)

# Processes that tests start import the helpers of the tests too.
os.environ["PYTHONPATH"] = python_path()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core for each process: more threads than cores wait for each other


@pytest.fixture(scope="session")
def tiny_localizer() -> Localizer:
    """Small batches, so that a dozen images are several; float32, so that equal means equal."""
    return Localizer(tiny_package(), device="cpu", precision="float32", batch_size=4)


@pytest.fixture(scope="session")
def default_package() -> NetworkPackage:
    """The default network with its real weights, for reading; float32 on the CPU."""
    return load()


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
