"""Measure images per second of camworker, of the limit set by decoding and network, and of other programs.

python tests/benchmarks/speed.py FOLDER [--rounds 3] [--json FILE]

Each candidate makes the top-5 labels, maps and boxes of photographs on disk. All candidates take turns in
every round, so that other load on the machine affects them alike: compare ratios within a round. Slow
candidates get fewer images. Candidates whose package is not installed are left out.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from competitors import grad_cam_loop, ray_data_pipeline, torchcam_loop
from in_process import InProcess, peak_memory
from localize_command import Run, localize

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
IN_PROCESS, LOCALIZE, NETWORK, DECODING = (
    "camworker, in process",
    "camworker localize",
    "network alone",
    "decoding alone",
)
TORCHCAM, GRAD_CAM, RAY_DATA = "torchcam, batch loop", "pytorch-grad-cam", "plain Ray Data pipeline"
LIMIT = "limit"


def main() -> None:
    args = arguments()
    photographs = sorted(
        path.resolve() for path in Path(args.folder).iterdir() if path.suffix.lower() in SUFFIXES
    )
    files = list(islice(cycle(photographs), args.images))
    camworker = InProcess(files, args.network, args.weights, args.compile)
    runs: list[Run] = []
    measured: dict[str, list[float]] = {}
    for number in range(args.rounds):
        for name, run in candidates(args, camworker, photographs, runs).items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            measured.setdefault(name, []).append(run())
        measured.setdefault(LIMIT, []).append(limit(camworker, measured))
    result = {
        "about": camworker.describe(),
        "rounds": args.rounds,
        "images": len(files),
        "rates": rates(measured),
    }
    result["stages_ms_per_image"] = camworker.stages()
    result["peak_mib_in_process"] = round(peak_memory())
    if runs:
        for name in ("worker_mib", "bytes_per_row"):
            result[name] = round(statistics.median(getattr(run, name) for run in runs), 1)
    if args.start_up:
        result["start_up"] = start_up(photographs, args.rounds)
    if args.scaling:
        result["scaling"] = {n: describe_run(localize(photographs, 4000, workers=n)) for n in (1, 2)}
    if args.growth:
        result["growth"] = {n: describe_run(localize(photographs, n)) for n in (100, 1000, 10_000)}
    print(table(result["rates"]))
    print(json.dumps(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=400, help="the photographs are repeated up to this number"
    )
    parser.add_argument("--localize-images", type=int, default=8000, help="for the command (default 8000)")
    parser.add_argument("--slow-images", type=int, default=64, help="for other programs (default 64)")
    parser.add_argument(
        "--network", default="efficientnet_lite0", help="for camworker; the others use the default network"
    )
    parser.add_argument("--weights")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--only-ours", action="store_true", help="leave out other programs and Ray")
    parser.add_argument("--start-up", action="store_true", help="also measure 50 images, compiled and not")
    parser.add_argument("--scaling", action="store_true", help="also measure 1 and 2 workers")
    parser.add_argument("--growth", action="store_true", help="also measure 100, 1,000 and 10,000 images")
    parser.add_argument("--json", metavar="FILE", help="also write the result to this file")
    return parser.parse_args()


def candidates(
    args: argparse.Namespace, camworker: InProcess, photographs: list[Path], runs: list[Run]
) -> dict[str, Callable[[], float]]:
    """Return what to run in a round, by name; each function returns images/s."""

    def through_ray() -> float:
        options = ["--compile", args.compile, "--network", args.network]
        options += ["--weights", args.weights] if args.weights else []
        runs.append(localize(photographs, args.localize_images, *options))
        return runs[-1].images_per_second

    chosen: dict[str, Callable[[], float]] = {
        IN_PROCESS: camworker.whole,
        NETWORK: camworker.network,
        DECODING: camworker.decoding,
    }
    if args.only_ours:
        return chosen
    few = args.slow_images
    if installed("ray"):
        chosen[LOCALIZE] = through_ray
        chosen[RAY_DATA] = ray_data_pipeline(camworker.files, 2 * few, len(os.sched_getaffinity(0)))
    if installed("torchcam"):
        chosen[TORCHCAM] = with_all_cores(torchcam_loop(camworker.files, few))
    if installed("pytorch_grad_cam"):
        chosen[GRAD_CAM] = with_all_cores(grad_cam_loop(camworker.files, few // 2))
    return chosen


def with_all_cores(run: Callable[[], float]) -> Callable[[], float]:
    """Run with as many threads as torch uses by default; `InProcess` sets another number."""
    import torch

    def threaded() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            return run()
        finally:
            torch.set_num_threads(before)

    return threaded


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def limit(camworker: InProcess, measured: dict[str, list[float]]) -> float:
    """Return the rate in the last round of cores that only decode and run the network.

    On a GPU it is that of the network alone, because the cores decode in parallel.
    """
    network, decoding = measured[NETWORK][-1], measured[DECODING][-1]
    return network if camworker.localizer.device.type == "cuda" else 1 / (1 / network + 1 / decoding)


def rates(measured: dict[str, list[float]]) -> dict[str, dict[str, object]]:
    """Return medians, and the median ratio of camworker to each candidate within a round."""
    reference = measured.get(LOCALIZE, measured[IN_PROCESS])
    return {
        name: {
            "images_per_second": round(statistics.median(values), 1),
            "rounds": [round(value, 1) for value in values],
            "localize_is_times": round(
                statistics.median(a / b for a, b in zip(reference, values, strict=True)), 3
            ),
        }
        for name, values in measured.items()
    }


def start_up(photographs: list[Path], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds until the first part of 50 images is committed, and until the command ends.

    The compiled network is loaded from the cache.
    """
    runs: dict[str, list[Run]] = {"auto": [], "on": [], "off": []}
    for _ in range(rounds):
        for mode, mode_runs in runs.items():
            mode_runs.append(localize(photographs, 50, "--compile", mode))
    return {
        mode: {
            "first_row": round(statistics.median(run.first_row for run in mode_runs), 1),
            "seconds": round(statistics.median(run.seconds for run in mode_runs), 1),
        }
        for mode, mode_runs in runs.items()
    }


def describe_run(run: Run) -> dict[str, float]:
    return {
        "images_per_second": run.images_per_second,
        "seconds": round(run.seconds, 1),
        "worker_mib": round(run.worker_mib),
    }


def table(rows: dict[str, dict[str, object]]) -> str:
    lines = ["| what | images/s | `localize` is ... times as fast |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {row['images_per_second']} | {row['localize_is_times']} |" for name, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - started:.0f} s", file=sys.stderr)
