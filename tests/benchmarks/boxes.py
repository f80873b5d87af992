"""What boxes and rows cost: python tests/benchmarks/boxes.py FOLDER [--rounds 9] [--limit 400].

Maps of the default network on a folder's photographs. cam20 as we make it, against the same words with
OpenCV's labelling, and against one contour where there is one; then an image's whole way to Parquet.
Microseconds of processor time, medians of rounds in which all take turns; shares are of boxes that are
equal to labelling's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import torch

from camworker import Localizer
from camworker.boxes.rules import boxes_from_cams
from camworker.frame import Frame
from camworker.images.decode import PreprocessedImage
from camworker.inference.arrow import predictions_table
from camworker.inference.cam_network import Maps
from camworker.inference.predictions import to_float16
from camworker.inputs.sources import open_source
from camworker.ledger.parts import encode_part

SIDE = 224
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=int, default=400, help="images")
    args = parser.parse_args()
    localizer = Localizer.load(device="cpu")
    items = open_source(args.folder, localizer.package.classes).items.slice(0, args.limit)
    batches = look(localizer, items)
    cams_Mhw = np.concatenate([to_float16(maps.best.maps_Mhw) for maps, _ in batches])
    cv2.setNumThreads(1)

    finished = [localizer.postprocess(*batch) for batch in batches]
    shape = localizer.cam_shape
    starts = range(0, items.num_rows, BATCH)
    table = pa.concat_tables(
        predictions_table(items.slice(start, BATCH), 1, columns, shape)
        for start, columns in zip(starts, finished, strict=True)
    )
    of_maps: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(cams_Mhw),
        "labelling": lambda: [labelling(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "contours": lambda: [contours(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "upsampling alone": lambda: [upsampled(cam_hw) for cam_hw in cams_Mhw],
    }
    of_images: dict[str, Callable[[], object]] = {
        "maps to columns": lambda: [localizer.postprocess(*batch) for batch in batches],
        "columns to Arrow": lambda: [
            predictions_table(items.slice(start, BATCH), 1, columns, shape)
            for start, columns in zip(starts, finished, strict=True)
        ],
        "Arrow to Parquet": lambda: encode_part(table),
    }
    seconds: dict[str, list[float]] = {name: [] for name in of_maps | of_images}
    for _ in range(args.rounds):
        for name, run in (of_maps | of_images).items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    truth = np.array([labelling(upsampled(cam_hw)) for cam_hw in cams_Mhw])
    equal = {
        "ours": ours(cams_Mhw),
        "contours": np.array([contours(upsampled(cam_hw)) for cam_hw in cams_Mhw]),
    }
    for name in of_maps:
        each = {"what": name, "us_per_map": round(1e6 * statistics.median(seconds[name]) / len(cams_Mhw), 1)}
        share = {"equal": float((equal[name] == truth).all(1).mean())} if name in equal else {}
        print(json.dumps(each | share))
    for name in of_images:
        cost = round(1e6 * statistics.median(seconds[name]) / items.num_rows, 1)
        print(json.dumps({"what": name, "us_per_image": cost}))
    print(
        json.dumps(
            {
                "maps": len(cams_Mhw),
                "images": items.num_rows,
                "bytes_per_row": len(encode_part(table)) / items.num_rows,
            }
        )
    )


def look(localizer: Localizer, items: pa.Table) -> list[tuple[Maps, list[PreprocessedImage]]]:
    """The network's maps of all images, batch by batch; an image that cannot be read stops this."""
    batches = []
    for start in range(0, items.num_rows, BATCH):
        images = []
        for uri in items["uri"].slice(start, BATCH).to_pylist():
            with open(uri, "rb") as file:
                image = localizer.preprocess(file.read())
            assert isinstance(image, PreprocessedImage), f"{uri}: {image.reason}"
            images.append(image)
        maps = localizer.forward(images, [()] * len(images))
        assert maps is not None
        batches.append((maps, images))
    return batches


def ours(cams_Mhw: np.ndarray) -> np.ndarray:
    frame = Frame(SIDE, SIDE, SIDE)
    return boxes_from_cams(cams_Mhw, [frame], np.zeros(len(cams_Mhw), np.int64))[0]


def upsampled(cam_hw: np.ndarray) -> np.ndarray:
    return cv2.resize(cam_hw.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def mask_of(map_HW: np.ndarray) -> np.ndarray | None:
    peak = map_HW.max()
    return (map_HW > np.float32(0.2) * peak).astype(np.uint8) if peak > 0 else None


def labelling(map_HW: np.ndarray) -> list[int]:
    """By the words of cam20; OpenCV's labels are not in row order, so of equals the first pixel decides."""
    mask_HW = mask_of(map_HW)
    if mask_HW is None:
        return [0, 0, SIDE, SIDE]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    pixels = stats[1:, cv2.CC_STAT_AREA]
    largest = 1 + np.flatnonzero(pixels == pixels.max())
    chosen = largest[0] if len(largest) == 1 else labels.ravel()[np.isin(labels, largest).argmax()]
    x, y, width, height = stats[chosen, :4]
    return [x, y, x + width, y + height]


def contours(map_HW: np.ndarray) -> list[int]:
    """One contour without a parent is the only component; else label."""
    mask_HW = mask_of(map_HW)
    if mask_HW is None:
        return [0, 0, SIDE, SIDE]
    found, hierarchy = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = np.flatnonzero(hierarchy[0, :, 3] < 0)
    if len(outer) > 1:
        return labelling(map_HW)
    x, y, width, height = cv2.boundingRect(found[outer[0]])
    return [x, y, x + width, y + height]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
