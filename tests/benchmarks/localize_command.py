"""Run `camworker localize` as a command, with Ray and commits, for the speed benchmark."""

import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the command took.

    Attributes:
        images_per_second: Steady-state throughput, as the command reports it.
        seconds: Time of the whole command.
        first_row: Seconds until the first part was committed.
        worker_mib: Largest peak of resident memory of a worker, in MiB.
        bytes_per_row: Size of the parts, divided by the number of images.
    """

    images_per_second: float
    seconds: float
    first_row: float
    worker_mib: float
    bytes_per_row: float


def localize(files: list[Path], count: int, *options: str, workers: int = 1) -> Run:
    """Run the command on `count` images, which are the files repeated under new ids."""
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = Path(folder, "manifest.csv"), Path(folder, "out")
        with manifest.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", "uri"])
            writer.writerows((f"{n}/{f.name}", f) for n, f in enumerate(islice(cycle(files), count)))
        roots = [option for root in {file.parent for file in files} for option in ("--local-root", str(root))]
        command = [
            sys.executable,
            "-m",
            "jobs.cli",
            "localize",
            str(manifest),
            "--output",
            str(out),
            "--json",
        ]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--workers", str(workers), *roots, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first_row, peak = 0.0, 0.0
        while process.poll() is None:
            if not first_row and any(out.glob("predictions/*/*.parquet")):
                first_row = time.monotonic() - started
            peak = max(peak, _workers_peak(process.pid))
            time.sleep(_POLL_SECONDS)
        output, errors = process.communicate()
        seconds = time.monotonic() - started
        if process.returncode:
            raise RuntimeError(f"localize ended with {process.returncode}: {errors}")
        parts = list(out.glob("predictions/*/*.parquet"))
        size = sum(part.stat().st_size for part in parts)
        result = json.loads(output.splitlines()[-1])
    return Run(result["images_per_second"], seconds, first_row or seconds, peak, size / count)


def _workers_peak(driver: int) -> float:
    """Return the largest peak of resident memory among the workers of a driver process, in MiB."""
    parents, peaks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            pid = int(folder.name)
            parents[pid] = int(lines["PPid"])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                peaks[pid] = int(lines["VmHWM"].split()[0]) / 1024
        except (OSError, KeyError):
            continue  # The process has ended.

    def is_descendant(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return max((peak for pid, peak in peaks.items() if is_descendant(pid)), default=0.0)
