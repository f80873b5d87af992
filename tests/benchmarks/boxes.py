"""Measure what boxes and rows cost: python tests/benchmarks/boxes.py FOLDER [--rounds 9] [--limit 400].

The maps are those of the default network on the photographs of a folder. The cam20 boxes of camworker are
compared with the same rule on OpenCV's labelling, and on a single contour if there is only one; then come
the steps from the maps of an image to Parquet. Times are microseconds of processor time, medians of rounds
in which all candidates take turns. `equal` is the share of boxes that equal those of OpenCV's labelling.
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
    parser.add_argument("--limit", type=int, default=400, help="number of images (default 400)")
    args = parser.parse_args()
    localizer = Localizer.load(device="cpu")
    items = open_source(args.folder, localizer.package.classes).items.slice(0, args.limit)
    batches = network_maps(localizer, items)
    cams_Mhw = np.concatenate([to_float16(maps.best.maps_Mhw) for maps, _ in batches])
    cv2.setNumThreads(1)

    finished = [localizer.postprocess(*batch) for batch in batches]
    shape = localizer.cam_shape
    starts = range(0, items.num_rows, BATCH)
    table = pa.concat_tables(
        predictions_table(items.slice(start, BATCH), 1, columns, shape)
        for start, columns in zip(starts, finished, strict=True)
    )
    map_candidates: dict[str, Callable[[], object]] = {
        "camworker": lambda: camworker_boxes(cams_Mhw),
        "labelling": lambda: [labelling_box(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "contours": lambda: [contour_box(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "upsampling alone": lambda: [upsampled(cam_hw) for cam_hw in cams_Mhw],
    }
    image_candidates: dict[str, Callable[[], object]] = {
        "maps to columns": lambda: [localizer.postprocess(*batch) for batch in batches],
        "columns to Arrow": lambda: [
            predictions_table(items.slice(start, BATCH), 1, columns, shape)
            for start, columns in zip(starts, finished, strict=True)
        ],
        "Arrow to Parquet": lambda: encode_part(table),
    }
    seconds: dict[str, list[float]] = {name: [] for name in map_candidates | image_candidates}
    for _ in range(args.rounds):
        for name, run in (map_candidates | image_candidates).items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    truth = np.array([labelling_box(upsampled(cam_hw)) for cam_hw in cams_Mhw])
    equal = {
        "camworker": camworker_boxes(cams_Mhw),
        "contours": np.array([contour_box(upsampled(cam_hw)) for cam_hw in cams_Mhw]),
    }
    for name in map_candidates:
        each = {"what": name, "us_per_map": round(1e6 * statistics.median(seconds[name]) / len(cams_Mhw), 1)}
        share = {"equal": float((equal[name] == truth).all(1).mean())} if name in equal else {}
        print(json.dumps(each | share))
    for name in image_candidates:
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


def network_maps(localizer: Localizer, items: pa.Table) -> list[tuple[Maps, list[PreprocessedImage]]]:
    """Return the maps of all images, batch by batch. Every image has to be readable."""
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


def camworker_boxes(cams_Mhw: np.ndarray) -> np.ndarray:
    frame = Frame(SIDE, SIDE, SIDE)
    return boxes_from_cams(cams_Mhw, [frame], np.zeros(len(cams_Mhw), np.int64))[0]


def upsampled(cam_hw: np.ndarray) -> np.ndarray:
    return cv2.resize(cam_hw.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def mask_of(map_HW: np.ndarray) -> np.ndarray | None:
    peak = map_HW.max()
    return (map_HW > np.float32(0.2) * peak).astype(np.uint8) if peak > 0 else None


def labelling_box(map_HW: np.ndarray) -> list[int]:
    """Return the cam20 box from OpenCV's labelling.

    OpenCV does not number components in row order, so the first pixel decides between equal components.
    """
    mask_HW = mask_of(map_HW)
    if mask_HW is None:
        return [0, 0, SIDE, SIDE]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    pixels = stats[1:, cv2.CC_STAT_AREA]
    largest = 1 + np.flatnonzero(pixels == pixels.max())
    chosen = largest[0] if len(largest) == 1 else labels.ravel()[np.isin(labels, largest).argmax()]
    x, y, width, height = stats[chosen, :4]
    return [x, y, x + width, y + height]


def contour_box(map_HW: np.ndarray) -> list[int]:
    """Return the box of the only outer contour, or that of `labelling_box` if there are several."""
    mask_HW = mask_of(map_HW)
    if mask_HW is None:
        return [0, 0, SIDE, SIDE]
    contours, hierarchy = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = np.flatnonzero(hierarchy[0, :, 3] < 0)
    if len(outer) > 1:
        return labelling_box(map_HW)
    x, y, width, height = cv2.boundingRect(contours[outer[0]])
    return [x, y, x + width, y + height]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
