"""Run records for tests."""

from collections import Counter
from collections.abc import Sequence

from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, RunRecord


def make_run_record(
    ledger: Ledger, generation: int, parts: Sequence[Part] = (), plan_hash: str = ""
) -> RunRecord:
    """Return the run record of a generation with these parts."""
    images = Counter[str]()
    for part in parts:
        images.update(part.images)
    return RunRecord(
        recipe=ledger.recipe,
        generation=generation,
        plan_hash=plan_hash,
        items=images.total(),
        images=dict(images),
        parts=tuple(parts),
    )
