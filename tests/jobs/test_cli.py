"""The command line: help for every command, and one clear line and an exit code for every error."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from camworker import errors
from camworker.errors import CamworkerError, UsageError
from camworker.presets import PRESETS
from camworker.refinement import REFINES
from camworker.schemas import PRECISIONS, REFINED
from jobs import cli, options, status
from jobs.cli import COMMANDS
from jobs.localize import arguments
from support.cli_runner import camworker, camworker_here, photographs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("cli") / "photos", 3)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    done = camworker(*command, "--help")
    assert done.code == 0
    assert "usage: camworker" in done.out
    assert not done.err


BAD_USAGE = {
    "a path that is not there": (["localize", "{tmp}/absent", "--output", "{tmp}/out"], "does not exist"),
    "an unknown network": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--network", "resnet999"],
        "unknown network 'resnet999': choose efficientnet_lite0",
    ),
    "labels that are no table": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--image-labels", "{photos}/0000.jpg"],
        "cannot be read as Parquet",
    ),
    "a label that the network lacks": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--image-labels", "{tmp}/labels.csv"],
        "1 labels are not among the network's 1000 classes ('unicorn')",
    ),
    "a folder without images": (["localize", "{tmp}", "--output", "{tmp}/../out"], "holds neither images"),
    "an output around the input": (["localize", "{photos}", "--output", "{photos}/.."], "holds the input"),
    "an unknown box rule": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--box-rule", "cam99"],
        "unknown box rule 'cam99': choose from cam20",
    ),
    "a rule on refined maps without any": (
        ["localize", "{photos}", "-o", "{tmp}/out", "--refine", "none", "--box-rule", "fine:1"],
        "box rule fine:1 needs refined maps, and there are none (--box-rule)",
    ),
    "a rule on refined maps in the preset of the paper": (
        ["localize", "{photos}", "-o", "{tmp}/out", "--preset", "paper", "--box-rule", "fine:1"],
        "box rule fine:1 needs refined maps, and there are none (--box-rule)",
    ),
    "refined maps of ten crops": (
        ["localize", "{photos}", "-o", "{tmp}/out", "--views", "ten-crop", "--refine", "ridge"],
        "maps of ten crops are not refined: choose single or flip (--views)",
    ),
    "an input too small for a map": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--input-size", "64"],
        "use a larger input",
    ),
    "weights that run code": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--weights", "{tmp}/labels.csv"],
        "weights are a .safetensors, .pt or .pth file",
    ),
    "a number out of range": (["localize", "{photos}", "--output", "x", "--top-k", "0"], "at least 1"),
    "a cluster that is not there": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--address", "127.0.0.1:1"],
        "no Ray cluster answers at 127.0.0.1:1",
    ),
    "more workers than cores": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--workers", "9999"],
        "9999 workers do not fit: there are",
    ),
    "a share of a GPU below none": (
        ["localize", "{photos}", "--output", "x", "--gpus-per-worker", "-1"],
        "has to be a number between 0 and 64",
    ),
    "parts too large": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--input-size", "512", "--shard-size", "99999"],
        "images would be larger than 64 MB",
    ),
    "a report where a file is": (
        ["summarize", "{tmp}/out", "--truth", "x", "--report", "{photos}/0000.jpg"],
        "cannot be a folder",
    ),
    "a sheet of no images": (["preview", "{tmp}/out", "--to", "x", "--count", "0"], "at least 1"),
    "columns of a folder": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--id-column", "name"],
        "which has no columns (--id-column)",
    ),
    "removals by the first images": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--remove-missing", "--limit", "1"],
        "removing rows needs the whole listing: leave --limit and --sample out (--remove-missing)",
    ),
    "removals by a sample": (
        ["localize", "{photos}", "--output", "{tmp}/out", "--remove-missing", "--sample", "1"],
        "removing rows needs the whole listing: leave --limit and --sample out (--remove-missing)",
    ),
    "no such command": (["lokalize"], "invalid choice: 'lokalize'"),
    "an output without predictions": (["summarize", "{tmp}", "--truth", "x"], "holds no predictions"),
    "an output that is not there": (["status", "{tmp}/absent"], "holds no predictions"),
}


def test_the_parser_loads_no_heavy_library() -> None:
    program = "import sys, jobs.cli; jobs.cli.make_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "pyarrow", "duckdb", "pandas"} & set(done.stdout.split())


def test_the_precisions_are_those_of_the_library() -> None:
    assert options._PRECISIONS == PRECISIONS


def test_the_choices_of_localize_are_those_of_the_library() -> None:
    assert arguments._PRESETS == PRESETS
    assert arguments._REFINES == REFINES
    assert arguments._REFINED == REFINED


def test_localize_leaves_to_the_preset_what_is_not_given() -> None:
    args = cli.make_parser().parse_args(["localize", "in", "-o", "out"])
    assert (args.preset, args.output, args.refined) == ("default", "out", "best")
    for name in ("input_size", "resize", "views", "output_stride", "refine", "box_rule"):
        assert getattr(args, name) is None


NEEDS_RAY = ("a cluster that is not there", "more workers than cores")
# In a process of their own, to see that the libraries that are imported print nothing.
OWN_PROCESS = (*NEEDS_RAY, "an unknown network", "labels that are no table")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.ray] if case in NEEDS_RAY else []) for case in BAD_USAGE],
)
def test_bad_usage_is_one_clear_line_and_nothing_is_written(case: str, photos: Path, tmp_path: Path) -> None:
    arguments, message = BAD_USAGE[case]
    (tmp_path / "labels.csv").write_text("image_id,label\n0000.jpg,unicorn\n")
    before = sorted(tmp_path.rglob("*"))
    started = time.monotonic()
    run = camworker if case in OWN_PROCESS else camworker_here
    done = run(*(part.format(tmp=tmp_path, photos=photos) for part in arguments))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not done.out
    assert sorted(tmp_path.rglob("*")) == before
    assert time.monotonic() - started < 60  # nothing waited for an absent cluster


def subclasses(error: type[CamworkerError]) -> list[type[CamworkerError]]:
    return [error, *(each for child in error.__subclasses__() for each in subclasses(child))]


@pytest.mark.parametrize(
    "kind", [kind for kind in subclasses(CamworkerError) if kind.__module__ == errors.__name__]
)
def test_every_error_of_camworker_is_one_line_and_its_exit_code(
    kind: type[CamworkerError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise kind("this cannot work")

    monkeypatch.setattr(status, "run", run)
    assert cli.main(["status", "out"]) == kind.exit_code
    assert capsys.readouterr() == ("", "camworker status: this cannot work\n")


@pytest.mark.parametrize(
    ("command", "parameter", "shown"),
    [
        (["localize", "in", "--output", "out"], "id_column", " (--id-column)"),
        (["units", "in", "--to", "out"], "classes", " (--class)"),
        (
            ["package", "w.pt", "--network", "n", "--class-names", "c", "--output", "o"],
            "weights",
            " (WEIGHTS)",
        ),
        (["status", "out"], "id_column", ""),
    ],
)
def test_an_error_names_the_option_to_change(
    command: list[str],
    parameter: str,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object) -> int:
        raise UsageError("this cannot work", parameter=parameter)

    monkeypatch.setattr(f"jobs.{command[0]}.run", run)
    assert cli.main(command) == 2
    assert capsys.readouterr().err == f"camworker {command[0]}: this cannot work{shown}\n"
