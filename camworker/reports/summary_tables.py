"""A summary as rows of CSV: all its values, accuracy by threshold, and what did not match."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from camworker.metrics.summary import Summary, SweepCurves
from camworker.metrics.summary_json import JsonObject, JsonValue, to_json
from camworker.metrics.tally import IOU_BINS

VALUE_COLUMNS: Final = ("name", "value", "low", "high")
UNMATCHED_COLUMNS: Final = ("kind", "name", "count")
_INTERVAL: Final = "_ci95"

ValueRow: TypeAlias = tuple[str, JsonValue, JsonValue, JsonValue]
UnmatchedRow: TypeAlias = tuple[str, str, int]


def value_rows(summary: Summary) -> list[ValueRow]:
    """Return (name, value, low, high) of every value of a summary.

    low and high are the ends of the value's 95% interval, None if it has none. A value inside another object
    is named by both ("max_box_acc_at.0.5"), one of a bin by the bin's ends ("by_size.0.02-0.05.instances"),
    one of another recipe by the recipe ("compared.r0123456789ab.corloc"). Accuracy by threshold and by class,
    and ids that did not match, have files of their own.
    """
    content = to_json(summary, detailed=True)
    for name in ("sweep", "per_class", "unmatched"):
        del content[name]
    content["iou_histogram"] = [
        {"from": n / IOU_BINS, "to": (n + 1) / IOU_BINS, "instances": count}
        for n, count in enumerate(summary.iou_histogram)
    ]
    return list(_rows(content, "", {}))


def class_table(summary: Summary) -> tuple[list[str], list[list[object]]]:
    """Return the columns and the rows of the results by class."""
    columns = ["label", "name", "instances", "instances_with_boxes", *summary.per_class[0].values]
    rows: list[list[object]] = [
        [result.label, result.name, result.instances, result.instances_with_boxes, *result.values.values()]
        for result in summary.per_class
    ]
    return columns, rows


def threshold_table(sweep: SweepCurves | None) -> tuple[list[str], list[tuple[float, ...]]]:
    """Return the columns and rows of accuracy by threshold: of MaxBoxAcc, then of MaxBoxAccV2 at each IoU.

    Without a sweep there are no rows.
    """
    if sweep is None:
        return ["threshold"], []
    columns = ["threshold", "max_box_acc", *(f"max_box_acc_v2_at_{delta}" for delta in sweep.v2)]
    return columns, list(zip(sweep.thresholds, sweep.v1, *sweep.v2.values(), strict=True))


def unmatched_rows(summary: Summary) -> list[UnmatchedRow]:
    """Return (kind, name, count) of what has no counterpart on the other side.

    Images that are counted but not listed make one more row with an empty name. Classes that the network does
    not have are counted in rows of the ground truth.
    """
    rows: list[UnmatchedRow] = []
    for kind, total, listed in (
        ("image_without_truth", summary.images_without_truth, summary.without_truth),
        ("truth_without_image", summary.truth_without_image, summary.unseen),
    ):
        rows += [(kind, image_id, 1) for image_id in listed]
        if total > len(listed):
            rows.append((f"{kind}_not_listed", "", total - len(listed)))
    return rows + [("unknown_class", name, count) for name, count in summary.unknown_classes.items()]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, with an empty field for None."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _rows(content: JsonObject, prefix: str, intervals: JsonObject) -> Iterator[ValueRow]:
    """Yield the rows of an object.

    intervals holds the intervals of its values by name; those in the object itself are named with _INTERVAL.
    """
    for name, value in content.items():
        if name.endswith(_INTERVAL):
            continue
        full_name = f"{prefix}{name}"
        interval = content.get(f"{name}{_INTERVAL}", intervals.get(name))
        if isinstance(value, dict):
            yield from _rows(value, f"{full_name}.", interval if isinstance(interval, dict) else {})
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict):
                    yield from _entry_rows(entry, full_name)
        else:
            low, high = interval if isinstance(interval, list) else (None, None)
            yield full_name, value, low, high


def _entry_rows(entry: JsonObject, prefix: str) -> Iterator[ValueRow]:
    """Yield the rows of an entry of a list, named by its recipe or by the ends of its bin."""
    name = entry["recipe"] if "recipe" in entry else f"{entry['from']:.2f}-{entry['to']:.2f}"
    values = {key: value for key, value in entry.items() if key not in ("recipe", "from", "to")}
    yield from _rows(values, f"{prefix}.{name}.", {})
