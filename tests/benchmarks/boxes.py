"""Measure what boxes and rows cost: python tests/benchmarks/boxes.py FOLDER [--rounds 9] [--limit 400].

The maps are those of the default network on the photographs of a folder. The cam20 boxes of camworker are
compared with the same rule on OpenCV's labelling, and on a single contour if there is only one. The sweep of
MaxBoxAcc over 100 thresholds is compared with OpenCV's contours at each. Then come the steps from the maps of
an image to Parquet. Times are microseconds of processor time, medians of rounds in which all candidates take
turns. `equal` is the share of boxes that equal those of OpenCV's labelling, and of sweeps that agree.
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
from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import score_map
from camworker.boxes.rules import boxes_from_cams
from camworker.frame import Frame
from camworker.images.decode import PreprocessedImage
from camworker.inference.arrow import predictions_table
from camworker.inference.cam_network import Maps
from camworker.inputs.sources import open_source
from camworker.ledger.parts import encode_part
from camworker.metrics.threshold_sweep import THRESHOLDS, Sweep

SIDE = 224
BATCH = 16
SWEEPS = 60  # maps that are swept
TRUTH = np.array([[40, 30, 180, 190]])  # the true box of a sweep; its cost does not depend on it
BUFFER_HW = np.empty((SIDE, SIDE), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=int, default=400, help="number of images (default 400)")
    args = parser.parse_args()
    localizer = Localizer.load(preset="paper", device="cpu")
    items = open_source(args.folder, localizer.package.classes).items.slice(0, args.limit)
    batches = network_maps(localizer, items)
    cams_Mhw = np.concatenate([maps.best.maps_Mhw.astype(np.float16) for maps, _ in batches])
    cv2.setNumThreads(1)

    finished = [localizer.postprocess(*batch) for batch in batches]
    starts = range(0, items.num_rows, BATCH)
    table = pa.concat_tables(
        predictions_table(items.slice(start, BATCH), 1, columns)
        for start, columns in zip(starts, finished, strict=True)
    )
    map_candidates: dict[str, Callable[[], object]] = {
        "camworker": lambda: camworker_boxes(cams_Mhw),
        "labelling": lambda: [labelling_box(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "contours": lambda: [contour_box(upsampled(cam_hw)) for cam_hw in cams_Mhw],
        "upsampling alone": lambda: [upsampled(cam_hw) for cam_hw in cams_Mhw],
    }
    sweep, sweep_cams = Sweep(), cams_Mhw[:SWEEPS]
    sweep_candidates: dict[str, Callable[[], object]] = {
        "camworker sweep": lambda: [sweep.maxboxacc(cam_hw, TRUTH) for cam_hw in sweep_cams],
        "contours sweep": lambda: [contour_sweep(cam_hw) for cam_hw in sweep_cams],
    }
    image_candidates: dict[str, Callable[[], object]] = {
        "maps to columns": lambda: [localizer.postprocess(*batch) for batch in batches],
        "columns to Arrow": lambda: [
            predictions_table(items.slice(start, BATCH), 1, columns)
            for start, columns in zip(starts, finished, strict=True)
        ],
        "Arrow to Parquet": lambda: encode_part(table),
    }
    candidates = map_candidates | sweep_candidates | image_candidates
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds):
        for name, run in candidates.items():
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
    agree = [np.allclose(sweep.maxboxacc(cam_hw, TRUTH), contour_sweep(cam_hw)) for cam_hw in sweep_cams]
    for name in sweep_candidates:
        cost = round(1e6 * statistics.median(seconds[name]) / len(sweep_cams), 1)
        print(json.dumps({"what": name, "us_per_map": cost, "equal": float(np.mean(agree))}))
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
            assert isinstance(image, PreprocessedImage), f"{uri}: {image}"
            images.append(image)
        maps = localizer.forward(images, [()] * len(images))
        assert maps is not None
        batches.append((maps, images))
    return batches


def camworker_boxes(cams_Mhw: np.ndarray) -> np.ndarray:
    frame = Frame(SIDE, SIDE, SIDE)
    return boxes_from_cams(cams_Mhw, [frame], np.zeros(len(cams_Mhw), np.int64)).corners_L4


def upsampled(cam_hw: np.ndarray) -> np.ndarray:
    """Upsample a map into the one buffer that all maps share, which stays in the CPU cache."""
    return cv2.resize(cam_hw.astype(np.float32), (SIDE, SIDE), BUFFER_HW, interpolation=cv2.INTER_LINEAR)


def mask_of(map_HW: np.ndarray) -> np.ndarray | None:
    peak = map_HW.max()
    return (map_HW > np.float32(0.2) * peak).view(np.uint8) if peak > 0 else None


def labelling_box(map_HW: np.ndarray) -> list[int]:
    """Return the cam20 box from OpenCV's labelling.

    OpenCV does not number components in row order, so the first pixel decides between equal components.
    """
    mask_HW = mask_of(map_HW)
    if mask_HW is None:
        return [0, 0, SIDE, SIDE]
    _, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(mask_HW, 8, cv2.CV_16U, cv2.CCL_BBDT)
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
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) > 1:
        return labelling_box(map_HW)
    x, y, width, height = cv2.boundingRect(contours[0])
    return [x, y, x + width, y + height]


def contour_sweep(cam_hw: np.ndarray) -> np.ndarray:
    """Return the IoU of MaxBoxAcc's box and the best of MaxBoxAccV2's boxes at each threshold, [T, 2]."""
    grey_HW = (score_map(cam_hw) * 255).astype(np.uint8)
    boxes: list[list[int]] = []
    largest, firsts = [], []
    for tau in THRESHOLDS:
        mask_HW = (grey_HW > int(tau * int(grey_HW.max()))).view(np.uint8)
        contours, _ = cv2.findContours(mask_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        areas = [cv2.contourArea(contour) for contour in contours]
        firsts.append(len(boxes))
        largest.append(len(boxes) + (int(np.argmax(areas)) if areas else 0))
        rectangles = [cv2.boundingRect(contour) for contour in contours]
        boxes += [[x, y, min(x + w, SIDE - 1), min(y + h, SIDE - 1)] for x, y, w, h in rectangles] or [
            [0] * 4
        ]
    overlaps = iou(np.array(boxes), TRUTH, inclusive=True).max(1)
    return np.stack([overlaps[largest], np.maximum.reduceat(overlaps, firsts)], axis=1)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
