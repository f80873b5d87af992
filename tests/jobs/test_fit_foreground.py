"""The command fit-foreground: what it refuses before it starts, and the order in which shards are merged."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from camworker.networks.foreground import ForegroundSums
from camworker.networks.package import build_package, load, save
from camworker.networks.registry import create_network, imagenet
from jobs.fit_foreground.command import InOrder
from support.cli_runner import camworker_here
from support.tapped_network import discs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs(tmp_path_factory.mktemp("fit") / "in", 100)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the default network without a head, because its weights are not the published ones."""
    torch.manual_seed(0)
    state = create_network("efficientnet_lite0", classes=1000).model.state_dict()
    place = tmp_path_factory.mktemp("package") / "p"
    save(build_package("efficientnet_lite0", state, imagenet()), place)
    return place


def refusal(*arguments: str | Path) -> str:
    done = camworker_here("fit-foreground", *arguments)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    return done.err


def test_fewer_than_100_images_are_refused(folder: Path, package: Path) -> None:
    message = refusal(folder, "--weights", package, "--limit", "99")
    assert "99 images are too few: a foreground head needs at least 100, of many classes" in message
    assert not (package / "foreground.safetensors").exists()


def test_the_place_of_the_head_has_to_be_named(folder: Path) -> None:
    assert "where to write the head (--output)" in refusal(folder)
    assert "where to write the head (--output)" in refusal(folder, "--network", "nin")


def test_an_existing_head_is_kept_unless_the_user_decides(folder: Path, tmp_path: Path) -> None:
    save(load(), tmp_path / "p")
    before = (tmp_path / "p" / "foreground.safetensors").read_bytes()
    message = refusal(folder, "--weights", tmp_path / "p")
    assert "foreground.safetensors exists already" in message
    assert "--add" in message
    assert "--replace" in message
    assert (tmp_path / "p" / "foreground.safetensors").read_bytes() == before


def test_nothing_is_overwritten_at_the_output(folder: Path, package: Path, tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"")
    assert "exists already: choose another place (--output)" in refusal(
        folder, "--output", tmp_path / "head.safetensors"
    )
    assert "exists already: choose another place (--output)" in refusal(folder, "--output", package)


def test_there_has_to_be_a_head_to_add_to(folder: Path, package: Path) -> None:
    assert "no foreground head to add images to (--add)" in refusal(folder, "--weights", package, "--add")


def test_shards_are_merged_in_their_order() -> None:
    def sums(value: float) -> ForegroundSums:
        zero = ForegroundSums.zero(1, 0)
        return ForegroundSums(1, 1, np.array([value]), zero.squares_C, zero.gram_DD, zero.moments_D, 1, {})

    values = [0.1, 0.2, 0.3, 1e16]
    for order in permutations(range(len(values))):
        merged = InOrder(ForegroundSums.zero(1, 0))
        for shard in (*order, order[0]):  # a shard that arrives a second time changes nothing
            merged.add(shard, sums(values[shard]))
        assert merged.total.sum_C[0] == ((0.1 + 0.2) + 0.3) + 1e16
        assert merged.total.images == 4
