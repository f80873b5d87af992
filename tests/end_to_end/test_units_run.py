"""The units command over an input and over an output of localize, with the default network."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from camworker.errors import UsageError
from camworker.units.table import UNITS
from support.cli_runner import Finished, camworker, camworker_here, photographs
from support.fatal_decoder import ABORT, install_in_children

COUNT = 12
CLASSES = (
    "--class",
    "tabby",
    "--class",
    "967",
    "--class",
    "n02123045",
)  # the first and the last are the same class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photographs(tmp_path_factory.mktemp("units") / "in", COUNT)
    (folder / "text.jpg").write_text("not a picture")
    (folder / "0002b.jpg").write_bytes((folder / "0002.jpg").read_bytes() + ABORT)
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of localize with a second generation: one photograph was replaced since the first."""
    source, out = tmp_path_factory.mktemp("localized") / "in", tmp_path_factory.mktemp("out") / "out"
    shutil.copytree(folder, source, ignore=shutil.ignore_patterns("0002b.jpg"))
    for photograph in ("0001.jpg", "0000.jpg"):
        shutil.copy(folder / photograph, source / "0000.jpg")
        assert camworker("localize", source, "--output", out, "--precision", "float32").code == 0
    return out


def units(source: Path, to: Path, *options: str | Path, **settings: dict[str, str]) -> Finished:
    fixed = ("--units", "2", "--patches", "3", "--precision", "float32", "--json")
    return camworker("units", source, "--to", to, *CLASSES, *fixed, *options, **settings)


@pytest.fixture(scope="module")
def of_input(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run over the photographs, one of which crashes its decoder; see test_isolated_decoder.py."""
    path = install_in_children(tmp_path_factory.mktemp("decoder") / "site")
    return units(folder, tmp_path_factory.mktemp("dictionary"), environment={"PYTHONPATH": path})


@pytest.mark.ray
def test_an_input_gives_a_table_and_a_page_despite_broken_images(of_input: Finished) -> None:
    assert of_input.code == 0, of_input.err
    summary = of_input.json
    assert (summary["images"], summary["failed"]) == (COUNT, {"poison": 1, "unsupported": 1})
    assert (summary["classes"], summary["units"], summary["patches"]) == (2, 4, 12)
    assert 60 <= summary["patch_side"] <= 130
    table = pq.read_table(summary["parquet"])
    assert table.schema.equals(UNITS)
    for row in table.to_pylist():
        assert 0 <= row["xmin"] < row["xmax"] <= 240
        assert 0 <= row["ymin"] < row["ymax"] <= 240
        assert row["xmax"] - row["xmin"] == pytest.approx(summary["patch_side"] * 240 / 224, abs=0.01)
    assert table["label"].unique().to_pylist() == [281, 967]
    page = Path(summary["page"]).read_text()
    assert page.count('src="data:image/jpeg;base64,') == 12
    assert "no longer readable" not in page


@pytest.mark.ray
@pytest.mark.slow
def test_an_output_of_the_same_images_gives_the_same_table(
    of_input: Finished, out: Path, tmp_path: Path
) -> None:
    done = units(out, tmp_path, "--workers", "2", "--batch-size", "5")
    assert done.code == 0, done.err
    assert (done.json["images"], done.json["failed"]) == (COUNT, {})
    columns = ["label", "unit_rank", "unit", "patch_rank", "image_id", "xmin", "ymin", "xmax", "ymax"]
    of_output, expected = (pq.read_table(run.json["parquet"]) for run in (done, of_input))
    assert of_output.select(columns).equals(expected.select(columns))


def test_refusals_write_nothing(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    for options, reason in (
        (("--recipe", "r0123456789ab"), "is not an output of localize"),
        (("--class", "unicorn"), "not among the network's 1000 classes"),
        (("--network", "resnet"), "unknown network"),
    ):
        done = camworker_here("units", folder, "--to", to, *options)
        assert (done.code, done.out) == (UsageError.exit_code, "")
        assert reason in done.err
    assert not to.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_an_output_needs_the_network_that_made_it(out: Path, tmp_path: Path) -> None:
    for recipe in out.glob("ledger/*/recipe.json"):
        text = recipe.read_text()
        other = tmp_path / "out" / recipe.relative_to(out)
        other.parent.mkdir(parents=True)
        other.write_text(text.replace('"weights": "', '"weights": "0'))
    done = camworker("units", tmp_path / "out", "--to", tmp_path / "to")
    assert done.code == UsageError.exit_code
    assert "other weights: name them with --network and --weights" in done.err
    done = camworker("units", out, "--to", tmp_path / "to", "--input-size", "256")
    assert done.code == UsageError.exit_code
    assert "remove --input-size" in done.err
