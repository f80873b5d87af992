"""Run localize, summarize and preview on photographs that come with installed packages."""

import argparse
import csv
import importlib.util
import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from camworker.errors import UsageError
from camworker.frame import CORNERS
from jobs.console import DONE, Console
from jobs.options import output_folder

HELP = "run everything on a few photographs; start here"

_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Photo:
    """A photograph inside an installed package, with ground truth drawn by eye.

    Attributes:
        package: The package.
        file: The path of the photograph inside the package.
        label: The name of the closest ImageNet class.
        boxes: Half-open boxes (xmin, ymin, xmax, ymax) in pixels.
    """

    package: str
    file: str
    label: str
    boxes: tuple[_Box, ...]


_PHOTOS: Final = (
    _Photo("skimage", "data/astronaut.png", "space shuttle", ((356, 0, 474, 288),)),
    _Photo("skimage", "data/camera.png", "tripod", ((230, 205, 408, 512),)),
    _Photo("skimage", "data/chelsea.png", "tabby", ((0, 0, 400, 300),)),
    _Photo("skimage", "data/coffee.png", "espresso", ((173, 17, 407, 310),)),
    _Photo("skimage", "data/motorcycle_left.png", "moped", ((92, 16, 684, 450),)),
    _Photo("skimage", "data/rocket.jpg", "missile", ((309, 127, 337, 407),)),
    _Photo("sklearn", "datasets/images/china.jpg", "palace", ((63, 29, 372, 400),)),
    _Photo("sklearn", "datasets/images/flower.jpg", "daisy", ((170, 84, 447, 360), (287, 374, 470, 427))),
)
_BROKEN: Final = "broken.jpg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker demo`."""
    parser.add_argument(
        "--output",
        type=output_folder,
        default="camworker-demo",
        metavar="DIR",
        help="folder for all results (default camworker-demo)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker demo`; return its exit code."""
    from jobs.cli import main

    started = time.monotonic()
    home = Path(args.output)
    photos, truth = home / "photos", home / "truth.csv"
    _prepare(photos, truth)
    out, report = str(home / "predictions"), str(home / "report")
    commands = (
        ["localize", str(photos), "--output", out, "--image-labels", str(truth)],
        ["summarize", out, "--truth", str(truth), "--report", report],
        ["preview", out, "--to", report, "--truth", str(truth)],
    )
    for command in commands:
        console.out(f"\n$ camworker {' '.join(command)}")
        # With --json, standard output is reserved for the result of the demo itself.
        with redirect_stdout(sys.stderr if console.as_json else sys.stdout):
            code = main([*command, *(["--verbose"] if console.verbose else [])])
        if code != DONE:
            return code
    seconds = time.monotonic() - started
    pages = [str((home / "report" / name).absolute()) for name in ("contact_sheet.html", "summary.html")]
    counts = _counts(json.loads((home / "report" / "summary.json").read_text(encoding="utf-8")))
    console.out("\n" + _sentence(counts))
    console.out(f"\nDone in {seconds:.0f} s. Open in a browser:\n  {pages[0]}\n  {pages[1]}")
    console.out("Then try your own images: camworker localize FOLDER --output OUT")
    console.result(
        {"output": str(home.absolute()), "pages": pages, "seconds": round(seconds, 1), "counts": counts}
    )
    return DONE


def _counts(figures: dict[str, Any]) -> dict[str, int]:
    """Return how many of the known labels are right, from the JSON of a summary."""
    labels = figures["instances_with_boxes"]
    shares = {
        "first_class": 1 - figures["top1_classification_error"],
        "boxes_at_0.5": figures["gt_known_at"]["0.5"],
        "boxes_at_0.7": figures["gt_known_at"]["0.7"],
        "raw_boxes_at_0.5": figures["raw"]["gt_known_at"]["0.5"],
        "raw_boxes_at_0.7": figures["raw"]["gt_known_at"]["0.7"],
        "whole_image_at_0.5": figures["baselines"]["whole_image"],
    }
    return {"labels": labels} | {name: round(share * labels) for name, share in shares.items()}


def _sentence(counts: dict[str, int]) -> str:
    return (
        f"Of {counts['labels']} photographs with boxes drawn by eye, {counts['first_class']} have the right "
        "first class. The box of the known\n"
        f"class reaches IoU 0.5 for {counts['boxes_at_0.5']} and IoU 0.7 for {counts['boxes_at_0.7']}; "
        f"without refinement for {counts['raw_boxes_at_0.5']} and {counts['raw_boxes_at_0.7']}; a box over "
        f"the whole image reaches 0.5 for {counts['whole_image_at_0.5']}.\n"
        "So few photographs do not measure a network: camworker summarize does, with your own boxes."
    )


def _prepare(photos: Path, truth: Path) -> None:
    """Copy the photographs, truncate one of them on purpose and write the ground truth."""
    photos.mkdir(parents=True, exist_ok=True)
    with open(truth, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "label", *CORNERS])
        for photo in _PHOTOS:
            source = _find(photo)
            shutil.copy2(
                source, photos / source.name
            )  # keeps the time of the file, so that a second demo finds nothing new
            rows.writerows([source.name, photo.label, *box] for box in photo.boxes)
    if not (photos / _BROKEN).exists():
        data = (photos / "rocket.jpg").read_bytes()
        (photos / _BROKEN).write_bytes(data[: len(data) // 2])


def _find(photo: _Photo) -> Path:
    package = importlib.util.find_spec(photo.package)
    path = Path(package.origin or "").parent / photo.file if package else None
    if path is None or not path.exists():
        raise UsageError("the demo's photographs are not installed: pip install 'camworker[demo]'")
    return path
