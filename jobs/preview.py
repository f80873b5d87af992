"""Write an HTML contact sheet: photographs, heat maps of the best classes, boxes and failures."""

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument, add_recipe_option, output_folder, whole_number

if TYPE_CHECKING:
    import pyarrow as pa

    from camworker.ledger.snapshot import Snapshot
    from camworker.metrics.ground_truth.truth import Truth
    from camworker.reports.cards import Card
    from camworker.reports.contact_sheet import FailureRecord

HELP = "write a contact sheet of photographs, heat maps and boxes"

_FAILURES_LISTED: Final = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker preview`."""
    add_out_argument(parser)
    parser.add_argument(
        "--to", required=True, type=output_folder, metavar="DIR", help="folder for contact_sheet.html"
    )
    add_recipe_option(parser)
    parser.add_argument(
        "--count", type=whole_number(1), default=8, metavar="N", help="images per section (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random images (default 0)")
    parser.add_argument("--truth", metavar="FILE", help="also draw these true boxes (see summarize --truth)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker preview` and return its exit code."""
    from camworker.ledger.ledger import open_ledger
    from camworker.ledger.snapshot import Snapshot

    snapshot = Snapshot.load(open_ledger(open_store(args.output), args.recipe, args.output))

    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.metrics.ground_truth.truth import read_truth
    from camworker.reports.cards import Section
    from camworker.reports.contact_sheet import write_contact_sheet

    truth = read_truth(args.truth, snapshot.recipe.classes) if args.truth else None
    rows = pa.concat_tables(snapshot.iter_latest(["image_id", "status", "error", "scores"]))
    ok = pc.equal(rows["status"], pa.scalar("ok"))
    failures = rows.filter(pc.invert(ok))
    sections = _choose_images(rows.filter(ok), args.count, args.seed)
    cards = _cards(snapshot, truth, [image_id for _, ids in sections for image_id in ids])
    listed = failures.slice(0, _FAILURES_LISTED).select(["image_id", "status", "error"])
    path = write_contact_sheet(
        args.to,
        [Section(title, [cards[image_id] for image_id in ids]) for title, ids in sections],
        cast("list[FailureRecord]", listed.to_pylist()),
        recipe=snapshot.ledger.recipe,
        images=rows.num_rows,
        failed=Counter(cast(list[str], failures["status"].to_pylist())),
        truth=truth is not None,
        box_rule=snapshot.recipe.box_rule,
        refined=snapshot.recipe.refined if snapshot.recipe.refinement is not None else None,
    )
    console.out(f"open {path}")
    console.result({"recipe": snapshot.ledger.recipe, "page": str(path), "shown": len(cards)})
    return DONE


def _choose_images(rows: "pa.Table", count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Return the titles of the sections (best, worst, random) and the distinct image ids of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from camworker.inputs.sampling import select

    by_score = rows.append_column("score", pc.list_element(rows["scores"], 0)).sort_by(
        [("score", "descending"), ("image_id", "ascending")]
    )
    ids = cast(list[str], by_score["image_id"].to_pylist())
    if len(ids) <= count:
        return [("All images, the most certain first", ids)]
    best, rest = ids[:count], ids[count:]
    worst = rest[-count:][::-1]
    shown = pa.array(best + worst, pa.string())
    others = rows.filter(pc.invert(pc.is_in(rows["image_id"], shown)))
    sample = select(others, limit=None, sample=count, seed=seed)["image_id"].to_pylist()
    return [
        ("Best: the network is most certain", best),
        ("Worst: the network is least certain", worst),
        ("Random", cast(list[str], sample)),
    ]


def _cards(snapshot: "Snapshot", truth: "Truth | None", image_ids: list[str]) -> "dict[str, Card]":
    from camworker.reports.cards import Card, make_card
    from jobs.photographs import photographs

    cards = {}
    for photo in photographs(snapshot, image_ids):
        image_id = photo.row["image_id"]
        if photo.photo_HW3 is None:
            cards[image_id] = Card(image_id, (), photo.error)
            continue
        cards[image_id] = make_card(
            photo.row,
            photo.maps,
            photo.targets,
            photo.photo_HW3,
            photo.frame,
            snapshot.recipe.box_rule,
            truth.boxes_of(image_id).tolist() if truth else (),
            snapshot.recipe.classes.names,
        )
    return cards
