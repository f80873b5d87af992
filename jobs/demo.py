"""The main job on photographs that installed packages carry: localize, summarize, preview."""

import argparse
import csv
import importlib.util
import shutil
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from camworker.errors import UsageError
from camworker.frame import CORNERS
from jobs.console import DONE, Console
from jobs.options import output_folder

HELP = "the main job on a few photographs, start here"

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Photo:
    """A photograph inside an installed package, and what a person sees on it.

    label: an ImageNet class name, the nearest where ImageNet lacks the thing itself. boxes: xmin,
    ymin, xmax, ymax, half-open, in pixels, drawn by eye.
    """

    package: str
    file: str
    label: str
    boxes: tuple[Box, ...]


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
    parser.add_argument(
        "--output", type=output_folder, default="camworker-demo", metavar="DIR", help="default camworker-demo"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from jobs.cli import main

    started = time.monotonic()
    home = Path(args.output)
    photos, truth = home / "photos", home / "truth.csv"
    _lay_out(photos, truth)
    out, report = str(home / "predictions"), str(home / "report")
    commands = (
        ["localize", str(photos), "--output", out, "--image-labels", str(truth)],
        ["summarize", out, "--truth", str(truth), "--report", report],
        ["preview", out, "--to", report, "--truth", str(truth)],
    )
    for command in commands:
        console.out(f"\n$ camworker {' '.join(command)}")
        # With --json standard output is for our one object.
        with redirect_stdout(sys.stderr if console.as_json else sys.stdout):
            code = main([*command, *(["--verbose"] if console.verbose else [])])
        if code != DONE:
            return code
    seconds = time.monotonic() - started
    pages = [str((home / "report" / name).absolute()) for name in ("contact_sheet.html", "summary.html")]
    console.out(f"\nDone in {seconds:.0f} s. Open in a browser:\n  {pages[0]}\n  {pages[1]}")
    console.out("Then try your own: camworker localize FOLDER --output OUT")
    console.result({"output": str(home.absolute()), "pages": pages, "seconds": round(seconds, 1)})
    return DONE


def _lay_out(photos: Path, truth: Path) -> None:
    """Copy the photographs, cut one short on purpose, and write down what we drew."""
    photos.mkdir(parents=True, exist_ok=True)
    with open(truth, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "label", *CORNERS])
        for photo in _PHOTOS:
            source = _find(photo)
            shutil.copy2(source, photos / source.name)  # with its time: a second demo finds nothing new
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
