"""Images per second: us against torchcam in a batch loop, and how long decoding and network take alone.

python tests/benchmarks/throughput.py FOLDER [--rounds 3]

Top-5 labels, maps and boxes from files on disk, one process, without Ray. All candidates take turns
in every round, so that what else the machine does strikes them alike: read the ratios.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchcam.methods import CAM

from camworker import Localizer, weights
from camworker.boxes import boxes_from_cam
from camworker.frame import Frame
from camworker.localizer import Prepared
from camworker.shard import localize_items
from camworker.sources import open_source

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files = [Path(uri) for uri in open_source(args.folder, weights.load().classes).items["uri"].to_pylist()]
    candidates = {
        "camworker, auto": ours(args.folder, "auto"),
        "camworker, float32": ours(args.folder, "float32"),
        "torchcam, float32": torchcam_loop(files),
        "decoding alone": decoding(files),
        "network alone, auto": network(files),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: [len(files) / s for s in values] for name, values in seconds.items()}
    baseline = rates["torchcam, float32"]
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, baseline, strict=True))
        result = {"what": name, "images_per_second": round(statistics.median(values), 1)}
        print(json.dumps(result | {"against_torchcam": round(ratio, 2)}))


def ours(folder: str, precision: str) -> Callable[[], None]:
    localizer = Localizer.load(precision=precision)
    items = open_source(folder, localizer.package.classes).items

    def run() -> None:
        threads = torch.get_num_threads()
        for _ in localize_items(items, localizer, decoders=threads, verify=True):
            pass

    return run


def torchcam_loop(files: list[Path]) -> Callable[[], None]:
    """What its documentation leads to: PIL, a batch, five maps an image; boxes by our rule."""
    model = weights.load().network.model

    def run() -> None:
        with CAM(model, "bn2", "classifier") as extractor, torch.inference_mode():
            for start in range(0, len(files), BATCH):
                images = [Image.open(path).convert("RGB") for path in files[start : start + BATCH]]
                pixels = [np.asarray(i.resize((224, 224), Image.Resampling.BILINEAR)) for i in images]
                batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
                logits = model(batch)
                best = logits.topk(5).indices
                for rank in range(5):
                    maps = extractor(best[:, rank].tolist(), normalized=False)[0]
                    for image, cam in zip(images, maps, strict=True):
                        boxes_from_cam(cam.numpy(), Frame(*image.size, 224))

    return run


def decoding(files: list[Path]) -> Callable[[], None]:
    localizer = Localizer.load(precision="float32")

    def run() -> None:
        for path in files:
            localizer.prepare(path.read_bytes())

    return run


def network(files: list[Path]) -> Callable[[], None]:
    localizer = Localizer.load()
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    image = localizer.prepare(buffer.getvalue())
    assert isinstance(image, Prepared)

    def run() -> None:
        for start in range(0, len(files), BATCH):
            count = min(BATCH, len(files) - start)
            localizer.forward([image] * count, [()] * count)

    return run


if __name__ == "__main__":
    main()
