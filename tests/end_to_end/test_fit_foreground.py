"""fit-foreground on a local Ray cluster, with the default network at a smaller input."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.networks.foreground import fit_head
from camworker.networks.foreground_file import read_foreground
from camworker.networks.package import load, save
from camworker.training.foreground_sums import ForegroundCollector
from support.cli_runner import Finished, camworker, photographs

COUNT = 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photographs(tmp_path_factory.mktemp("fit") / "in", COUNT)
    (folder / "text.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default network with its head, at a fifth of the cost."""
    place, package = tmp_path_factory.mktemp("network") / "p", load()
    save(replace(package, preprocessing=replace(package.preprocessing, input_size=128)), place)
    return place


@pytest.fixture(scope="module")
def fitted(folder: Path, network: Path) -> Finished:
    options = ("--weights", network, "--output", folder.parent / "head.safetensors", "--workers", "2")
    return camworker("fit-foreground", folder, *options, "--json")


@pytest.mark.ray
def test_shards_on_workers_give_the_head_of_a_single_pass(
    fitted: Finished, folder: Path, network: Path
) -> None:
    assert fitted.code == 0, fitted.err
    assert fitted.json["failed"] == {"unsupported": 1}
    assert fitted.json["images"] == fitted.json["images_in_head"] == COUNT
    assert "3 shards" in fitted.err
    head = read_foreground(fitted.json["foreground"])
    package = load(str(network))
    items = open_source(str(folder), package.classes).items
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    try:
        single = ForegroundCollector(package).collect(items, ReadPolicy(), decoders=2)
    finally:
        torch.set_num_threads(threads)
    expected = fit_head(single.sums)
    np.testing.assert_allclose(head.head.fine_C, expected.fine_C, rtol=0, atol=1e-10)
    np.testing.assert_allclose(head.head.deep_C, expected.deep_C, rtol=0, atol=1e-10)
    assert head.sums.class_counts == single.sums.class_counts
    assert head.weights == package.fingerprint
    assert [(fit["input"], fit["images"]) for fit in head.fits] == [("in", COUNT)]


@pytest.mark.ray
def test_few_classes_are_reported(fitted: Finished) -> None:
    assert "warning: the images are of few classes" in fitted.err
    assert fitted.json["many_classes"] is False


@pytest.mark.ray
@pytest.mark.slow
def test_images_are_added_to_the_head_of_a_package(folder: Path, network: Path, tmp_path: Path) -> None:
    shutil.copytree(network, tmp_path / "p")
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\n0000.jpg,tabby\n")
    options = ("--weights", tmp_path / "p", "--add", "--limit", "10", "--image-labels", labels, "--json")
    done = camworker("fit-foreground", folder, *options)
    assert done.code == 0, done.err
    before, after = load(str(network)), load(str(tmp_path / "p"))
    assert after.fingerprint == before.fingerprint
    assert before.foreground is not None
    assert after.foreground is not None
    assert after.foreground.sums.images == before.foreground.sums.images + 10 == done.json["images_in_head"]
    assert after.foreground.head.fingerprint == done.json["head"] != before.foreground.head.fingerprint
    assert after.foreground.fits[:-1] == before.foreground.fits
    assert after.foreground.fits[-1]["classes"] == "known or predicted"
    counts = after.foreground.sums.class_counts
    assert counts["tabby"] > before.foreground.sums.class_counts.get("tabby", 0)


@pytest.mark.ray
@pytest.mark.slow
def test_too_many_broken_images_leave_nothing_behind(folder: Path, network: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "in")
    for number in range(40):
        (tmp_path / "in" / f"{number:04d}.jpg").write_bytes(b"")
    options = ("--weights", network, "--output", tmp_path / "p", "--json")
    done = camworker("fit-foreground", tmp_path / "in", *options)
    assert done.code == 2
    assert "90 images could be used, and a foreground head needs at least 100" in done.err
    assert not (tmp_path / "p").exists()
