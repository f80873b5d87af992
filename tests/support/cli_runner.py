"""Run the command line and collect its streams and exit code."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image

from jobs.cli import main

# Ray requires a token and would write one to the home folder, so the tests bring their own.
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


@dataclass(frozen=True)
class Finished:
    """The exit code and the streams of a command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def start(
    *arguments: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start camworker without a terminal; `environment` is added to the environment of this process."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**ENVIRONMENT, **(environment or {})}, cwd=cwd, **pipes)


def camworker(
    *arguments: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Finished:
    """Run camworker and wait until it ends."""
    process = start(*arguments, cwd=cwd, environment=environment)
    out, err = process.communicate(timeout=600)  # a slow machine; each test has a limit of its own
    return Finished(process.returncode, out, err)


def camworker_here(*arguments: str | Path) -> Finished:
    """Run camworker in this process, which has imported torch already: for commands that end at once."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as exited:
            code = int(exited.code or 0)
    return Finished(code, out.getvalue(), err.getvalue())


def photographs(folder: Path, count: int, side: int = 240) -> Path:
    """Write crops of real photographs as JPEGs, each different and the same on every run."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [
        *(skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket()),
        *sklearn.datasets.load_sample_images().images,
    ]
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = sources[number % len(sources)]
        y, x = (random.integers(0, length - side + 1) for length in pixels.shape[:2])
        Image.fromarray(pixels[y : y + side, x : x + side]).save(folder / f"{number:04d}.jpg")
    return folder
