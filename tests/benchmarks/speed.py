"""Images per second: us, the limit that decoding and network set, and what else one would write.

python tests/benchmarks/speed.py FOLDER [--rounds 3] [--json FILE]

Top-5 labels, maps and boxes of photographs on disk. All candidates take turns in every round, so that what
else the machine does strikes them alike: read the ratios, each within its round. Slow candidates get fewer
images. Without Ray, torchcam or pytorch-grad-cam what needs them is left out.
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
US, LOCALIZE, NETWORK, DECODING = (
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
    ours = InProcess(files, args.network, args.weights, args.compile)
    runs: list[Run] = []
    figures: dict[str, list[float]] = {}
    for number in range(args.rounds):
        for name, run in candidates(args, ours, photographs, runs).items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            figures.setdefault(name, []).append(run())
        figures.setdefault(LIMIT, []).append(limit(ours, figures))
    result = {"about": ours.about(), "rounds": args.rounds, "images": len(files), "rates": rates(figures)}
    result["stages_ms_per_image"] = ours.stages()
    result["peak_mib_in_process"] = round(peak_memory())
    if runs:
        for name in ("worker_mib", "bytes_per_row"):
            result[name] = round(statistics.median(getattr(run, name) for run in runs), 1)
    if args.start_up:
        result["start_up"] = start_up(photographs, args.rounds)
    if args.scaling:
        result["scaling"] = {n: of_run(localize(photographs, 4000, workers=n)) for n in (1, 2)}
    if args.growth:
        result["growth"] = {n: of_run(localize(photographs, n)) for n in (100, 1000, 10_000)}
    print(table(result["rates"]))
    print(json.dumps(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400, help="so many, again and again (default 400)")
    parser.add_argument("--localize-images", type=int, default=8000, help="for the command (default 8000)")
    parser.add_argument("--slow-images", type=int, default=64, help="for torchcam and others (default 64)")
    parser.add_argument(
        "--network", default="efficientnet_lite0", help="ours; the others' is the default one"
    )
    parser.add_argument("--weights")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--only-ours", action="store_true", help="no other programs, and no Ray")
    parser.add_argument("--start-up", action="store_true", help="also: 50 images, compiled and not")
    parser.add_argument("--scaling", action="store_true", help="also: 1 and 2 workers")
    parser.add_argument("--growth", action="store_true", help="also: 100, 1,000 and 10,000 images")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    return parser.parse_args()


def candidates(
    args: argparse.Namespace, ours: InProcess, photographs: list[Path], runs: list[Run]
) -> dict[str, Callable[[], float]]:
    """By name what to run in a round, each giving images/s."""

    def through_ray() -> float:
        options = ["--compile", args.compile, "--network", args.network]
        options += ["--weights", args.weights] if args.weights else []
        runs.append(localize(photographs, args.localize_images, *options))
        return runs[-1].images_per_second

    chosen: dict[str, Callable[[], float]] = {
        US: ours.whole,
        NETWORK: ours.network,
        DECODING: ours.decoding,
    }
    if args.only_ours:
        return chosen
    few = args.slow_images
    if installed("ray"):
        chosen[LOCALIZE] = through_ray
        chosen[RAY_DATA] = ray_data_pipeline(ours.files, 2 * few, len(os.sched_getaffinity(0)))
    if installed("torchcam"):
        chosen[TORCHCAM] = with_all_cores(torchcam_loop(ours.files, few))
    if installed("pytorch_grad_cam"):
        chosen[GRAD_CAM] = with_all_cores(grad_cam_loop(ours.files, few // 2))
    return chosen


def with_all_cores(run: Callable[[], float]) -> Callable[[], float]:
    """On as many of torch's threads as it would have by default; ours has divided them."""
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


def limit(ours: InProcess, figures: dict[str, list[float]]) -> float:
    """Of the last round: what cores that do nothing but decode and compute would reach.

    On a GPU the network alone: the cores decode beside it.
    """
    network, decoding = figures[NETWORK][-1], figures[DECODING][-1]
    return network if ours.localizer.device.type == "cuda" else 1 / (1 / network + 1 / decoding)


def rates(figures: dict[str, list[float]]) -> dict[str, dict[str, object]]:
    """Medians, and of each round the ratio of us to it."""
    us = figures.get(LOCALIZE, figures[US])
    return {
        name: {
            "images_per_second": round(statistics.median(values), 1),
            "rounds": [round(value, 1) for value in values],
            "we_are_times": round(statistics.median(a / b for a, b in zip(us, values, strict=True)), 3),
        }
        for name, values in figures.items()
    }


def start_up(photographs: list[Path], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds until the first part is committed, and until all is done, of 50 images; medians.

    What is compiled was compiled before.
    """
    runs: dict[str, list[Run]] = {"auto": [], "on": [], "off": []}
    for _ in range(rounds):
        for mode, of_mode in runs.items():
            of_mode.append(localize(photographs, 50, "--compile", mode))
    return {
        mode: {
            "first_row": round(statistics.median(run.first_row for run in of_mode), 1),
            "seconds": round(statistics.median(run.seconds for run in of_mode), 1),
        }
        for mode, of_mode in runs.items()
    }


def of_run(run: Run) -> dict[str, float]:
    return {
        "images_per_second": run.images_per_second,
        "seconds": round(run.seconds, 1),
        "worker_mib": round(run.worker_mib),
    }


def table(of: dict[str, dict[str, object]]) -> str:
    lines = ["| what | images/s | we are ... times as fast |", "| --- | --- | --- |"]
    lines += [f"| {name} | {row['images_per_second']} | {row['we_are_times']} |" for name, row in of.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - started:.0f} s", file=sys.stderr)
