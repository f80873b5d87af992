"""`camworker localize` as a command, for the speed benchmark: with Ray, commits and everything real."""

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
    """images_per_second: steady, as the command tells. first_row: seconds until a part is committed."""

    images_per_second: float
    seconds: float
    first_row: float
    worker_mib: float
    bytes_per_row: float


def localize(files: list[Path], count: int, *options: str, workers: int = 1) -> Run:
    """Run the command on so many images: files again and again, each time under another id."""
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
        answer, errors = process.communicate()
        seconds = time.monotonic() - started
        if process.returncode:
            raise RuntimeError(f"localize ended with {process.returncode}: {errors}")
        parts = list(out.glob("predictions/*/*.parquet"))
        size = sum(part.stat().st_size for part in parts)
        told = json.loads(answer.splitlines()[-1])
    return Run(told["images_per_second"], seconds, first_row or seconds, peak, size / count)


def _workers_peak(driver: int) -> float:
    """The largest peak of resident memory among the workers below driver, MiB."""
    parents, peaks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            pid = int(folder.name)
            parents[pid] = int(lines["PPid"])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                peaks[pid] = int(lines["VmHWM"].split()[0]) / 1024
        except (OSError, KeyError):
            continue  # it has ended meanwhile

    def below(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return max((peak for pid, peak in peaks.items() if below(pid)), default=0.0)
