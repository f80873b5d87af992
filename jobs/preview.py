"""An HTML contact sheet: photographs, heat maps of the best classes over them, boxes, failures."""

import argparse
from typing import TYPE_CHECKING, Final

from camworker.ledger.ledger import Ledger, open_ledger
from camworker.ledger.recipe import Recipe
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument, add_recipe_option, output_folder, whole_number

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.metrics.ground_truth.truth import Truth
    from camworker.reports.cards import Card, Section

HELP = "contact sheet of photographs, heat maps and boxes"

_FAILURES_LISTED: Final = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out_argument(parser)
    parser.add_argument(
        "--to", required=True, type=output_folder, metavar="DIR", help="where contact_sheet.html goes"
    )
    add_recipe_option(parser)
    parser.add_argument(
        "--count", type=whole_number(1), default=8, metavar="N", help="images a section (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed shows other random images")
    parser.add_argument("--truth", metavar="FILE", help="draw these boxes too (as summarize --truth)")


def run(args: argparse.Namespace, console: Console) -> int:
    ledger = open_ledger(open_store(args.output), args.recipe, args.output)
    recipe = ledger.read_recipe()

    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.dataset import iter_latest
    from camworker.metrics.ground_truth.truth import read_truth
    from camworker.reports.contact_sheet import write_contact_sheet

    truth = read_truth(args.truth, recipe.classes) if args.truth else None
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
    console.out(f"open {path}")
    console.result({"recipe": ledger.recipe, "page": str(path), "shown": len(cards)})
    return DONE


def _choose(rows: "pa.Table", count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Titles of sections and the ids in each: best, worst and random, none shown twice."""
    import pyarrow.compute as pc

    from camworker.inputs.sampling import select

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


def _cards(ledger: Ledger, recipe: Recipe, truth: "Truth | None", image_ids: list[str]) -> "dict[str, Card]":
    from camworker.reports.cards import Card, make_card
    from jobs.photographs import photographs

    cards = {}
    for photo in photographs(ledger, recipe, image_ids):
        image_id = photo.row["image_id"]
        if photo.photo_HW3 is None:
            cards[image_id] = Card(image_id, (), photo.error)
            continue
        cards[image_id] = make_card(
            photo.row,
            photo.cams_khw,
            photo.photo_HW3,
            photo.frame,
            truth.boxes_of(image_id) if truth else (),
            recipe.classes.names,
        )
    return cards


def _sections(chosen: list[tuple[str, list[str]]], cards: "dict[str, Card]") -> "list[Section]":
    from camworker.reports.cards import Section

    return [Section(title, [cards[image_id] for image_id in ids]) for title, ids in chosen]
