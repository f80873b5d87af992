"""A summary as rows of CSV: all its figures, accuracy by threshold, and what did not match."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from camworker.metrics.summary import TruthFacts, per_class
from camworker.metrics.tally import Tally

FIGURE_COLUMNS: Final = ("name", "value", "low", "high")
UNMATCHED_COLUMNS: Final = ("kind", "name", "count")
_ELSEWHERE: Final = ("sweep", "per_class", "unmatched")  # they have files of their own
_CI: Final = "_ci95"

FigureRow = tuple[str, Any, float | None, float | None]
UnmatchedRow = tuple[str, str, int]


def full_summary(
    summary: Mapping[str, Any], tally: Tally, facts: TruthFacts, class_names: Sequence[str]
) -> dict[str, Any]:
    """What compute gave, with all else that a report tells: summary.json.

    sweep_units: the units that thresholds were chosen on, and reported on. mask_pixels: of PxAP. per_class:
    a row for each class. unmatched: ids by kind, of each kind the first by hash.
    """
    chosen_on, reported_on = tally.sums["sweep_units"]
    pixels = tally.sums.get("pixels")
    return {
        **summary,
        "sweep_units": {"chosen_on": int(chosen_on), "reported_on": int(reported_on)},
        "mask_pixels": int(pixels.sum()) if pixels is not None else 0,
        "per_class": per_class(tally, tuple(class_names)),
        "unmatched": {
            "image_without_truth": [image_id for _, image_id in tally.without_truth],
            "truth_without_image": list(facts.unseen),
        },
    }


def figure_rows(summary: Mapping[str, Any]) -> list[FigureRow]:
    """(name, value, low, high) of every figure: low and high are its 95% interval, where it has one.

    A figure inside another is named by both ("max_box_acc_at.0.5"); one of a range by its bounds
    ("by_size.0.02-0.05.units"), one of another recipe by that ("compared.r0123456789ab.corloc").
    """
    histogram = summary["iou_histogram"]
    bins = zip(histogram["edges"], histogram["edges"][1:], histogram["units"], strict=False)
    found = {name: value for name, value in summary.items() if name not in _ELSEWHERE}
    found["iou_histogram"] = [{"from": low, "to": high, "units": units} for low, high, units in bins]
    return list(_rows(found, ""))


def threshold_table(sweep: Mapping[str, Any] | None) -> tuple[list[str], list[tuple[float, ...]]]:
    """(columns, rows): the share of hits at each threshold, V1 at IoU 0.5, then V2 at each IoU.

    No rows without a sweep.
    """
    if sweep is None:
        return ["threshold"], []
    names = [name for name in sweep if name not in ("rule", "thresholds")]
    columns = [name if name == "max_box_acc" else f"max_box_acc_v2_at_{name}" for name in names]
    rows = zip(sweep["thresholds"], *(sweep[name] for name in names), strict=True)
    return ["threshold", *columns], list(rows)


def unmatched_rows(summary: Mapping[str, Any]) -> list[UnmatchedRow]:
    """(kind, name, count) of what has no partner on the other side.

    Images that are counted and not listed are one row more, named "", with their count. Classes that the
    network lacks are counted in rows of the truth.
    """
    rows: list[UnmatchedRow] = []
    for kind, total in (
        ("image_without_truth", summary["images_without_truth"]),
        ("truth_without_image", summary["truth_without_image"]),
    ):
        listed = summary["unmatched"][kind]
        rows += [(kind, image_id, 1) for image_id in listed]
        if total > len(listed):
            rows.append((f"{kind}_not_listed", "", total - len(listed)))
    return rows + [("unknown_class", name, count) for name, count in summary["unknown_classes"].items()]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file in UTF-8. None is an empty field."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _rows(found: Mapping[str, Any], inside: str) -> Iterator[FigureRow]:
    for name, value in found.items():
        if name.endswith(_CI):
            continue
        full = f"{inside}{name}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{full}.")
        elif isinstance(value, list):
            for entry in value:
                yield from _entry_rows(entry, full)
        else:
            low, high = found.get(f"{name}{_CI}") or (None, None)
            yield full, value, low, high


def _entry_rows(entry: Mapping[str, Any], inside: str) -> Iterator[FigureRow]:
    """The rows of an entry of a list, which its bounds or its recipe tell from the others."""
    name = entry["recipe"] if "recipe" in entry else f"{entry['from']:.2f}-{entry['to']:.2f}"
    found = {key: value for key, value in entry.items() if key not in ("recipe", "from", "to")}
    yield from _rows(found, f"{inside}.{name}.")
