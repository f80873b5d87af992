"""An HTML contact sheet: photographs, heat maps of the best classes over them, boxes, failures."""

import argparse
from typing import TYPE_CHECKING, Any, Final

from camworker.ledger import Ledger, open_ledger
from camworker.store import open_store
from jobs.arguments import folder, whole
from jobs.console import DONE, Console

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.report import Card, Section
    from camworker.truth import Truth

HELP = "contact sheet of photographs, heat maps and boxes"

_FAILURES_LISTED: Final = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="what localize was given as --output")
    parser.add_argument(
        "--to", required=True, type=folder, metavar="DIR", help="where contact_sheet.html goes"
    )
    parser.add_argument("--recipe", help="which, where OUT holds several")
    parser.add_argument("--count", type=whole(1), default=8, metavar="N", help="images a section (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="another seed shows other random images")
    parser.add_argument("--truth", metavar="FILE", help="draw these boxes too (as summarize --truth)")


def run(args: argparse.Namespace, console: Console) -> int:
    ledger = open_ledger(open_store(args.output), args.recipe, args.output)
    recipe = ledger.read_recipe()

    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.classes import Classes
    from camworker.dataset import iter_latest
    from camworker.report import write_contact_sheet
    from camworker.truth import read_truth

    truth = read_truth(args.truth, Classes.of_recipe(recipe)) if args.truth else None
    rows = pa.concat_tables(iter_latest(ledger, ["image_id", "status", "error", "scores"]))
    ok = pc.equal(rows["status"], "ok")
    broken = rows.filter(pc.invert(ok))
    chosen = _choose(rows.filter(ok), args.count, args.seed)
    cards = _cards(ledger, recipe, truth, [image_id for _, ids in chosen for image_id in ids])
    path = write_contact_sheet(
        args.to,
        _sections(chosen, cards),
        broken.slice(0, _FAILURES_LISTED).select(["image_id", "status", "error"]).to_pylist(),
        recipe=ledger.recipe,
        images=rows.num_rows,
        failed={pair["values"]: pair["counts"] for pair in broken["status"].value_counts().to_pylist()},
        truth=truth is not None,
    )
    console.say(f"open {path}")
    console.result({"recipe": ledger.recipe, "page": str(path), "shown": len(cards)})
    return DONE


def _choose(rows: "pa.Table", count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Titles of sections and the ids in each: best, worst and random, none shown twice."""
    import pyarrow.compute as pc

    from camworker.plan import select

    by_score = rows.append_column("score", pc.list_element(rows["scores"], 0)).sort_by(
        [("score", "descending"), ("image_id", "ascending")]
    )
    ids = by_score["image_id"].to_pylist()
    if len(ids) <= count:
        return [("All images, the most certain first", ids)]
    best, rest = ids[:count], ids[count:]
    worst = rest[-count:][::-1]
    left = rows.filter(pc.invert(pc.is_in(rows["image_id"], pc.cast(best + worst, "string"))))
    drawn = select(left, limit=None, sample=count, seed=seed)["image_id"].to_pylist()
    return [
        ("Best: the network is most certain", best),
        ("Worst: the network is least certain", worst),
        ("Random", drawn),
    ]


def _cards(
    ledger: Ledger, recipe: dict[str, Any], truth: "Truth | None", image_ids: list[str]
) -> "dict[str, Card]":
    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.dataset import iter_latest
    from camworker.errors import Failure
    from camworker.fetch import fetches
    from camworker.frame import Frame, frame_size
    from camworker.images import decode
    from camworker.report import Card, make_card

    wanted = pa.array(image_ids, pa.string())
    rows = pa.concat_tables(
        table.filter(pc.is_in(table["image_id"], wanted)) for table in iter_latest(ledger)
    ).sort_by([("uri", "ascending"), ("source_row", "ascending")])
    cards = {}
    preprocessing = recipe["preprocessing"]
    size = frame_size(preprocessing["input_size"], recipe["views"])
    for generation in pc.unique(rows["generation"]).to_pylist():
        plan = ledger.read_plan(generation)
        here = rows.filter(pc.equal(rows["generation"], generation))
        cams = here["cams"].combine_chunks().to_numpy_ndarray()
        # A photograph that was replaced since would lie: its maps are another picture's.
        sources = fetches(here, verify=plan.verify, tables=plan.tables)
        for index, (row, fetch) in enumerate(
            zip(here.drop_columns("cams").to_pylist(), sources, strict=True)
        ):
            data = fetch()
            pixels_CHW = data if isinstance(data, Failure) else decode(data)
            if isinstance(pixels_CHW, Failure):
                trouble = f"the photograph cannot be shown: {pixels_CHW.reason}"
                cards[row["image_id"]] = Card(row["image_id"], (), trouble)
                continue
            frame = Frame(row["width"], row["height"], size, preprocessing["resize"])
            photo_HW3 = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
            boxes = _true_boxes(truth, row["image_id"])
            names = recipe["class_names"]
            cards[row["image_id"]] = make_card(row, cams[index], photo_HW3, frame, boxes, names)
    return cards


def _true_boxes(truth: "Truth | None", image_id: str) -> list[list[float]]:
    if truth is None or truth.corners is None:
        return []
    return truth.corners[truth.image_ids == image_id].tolist()


def _sections(chosen: list[tuple[str, list[str]]], cards: "dict[str, Card]") -> "list[Section]":
    from camworker.report import Section

    return [Section(title, [cards[image_id] for image_id in ids]) for title, ids in chosen]
