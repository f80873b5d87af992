"""training.html: the settings of a fine-tuning run and its loss and accuracy by epoch."""

from collections.abc import Mapping, Sequence
from typing import Final, cast

from camworker.reports.render import render_page

_CURVES: Final = (
    ("Loss", ("loss", "validation_loss")),
    ("Accuracy on held-back images", ("validation_accuracy", "gt_known_localization_accuracy")),
)


def training_page(history: Sequence[Mapping[str, object]], settings: Mapping[str, object], best: int) -> str:
    """Return the page of a fine-tuning run as HTML.

    Args:
        history: The results of each epoch by name (numbers); a result that was not measured is None.
        settings: The settings of the run by name.
        best: Index in `history` of the epoch whose weights were kept.
    """
    curves = []
    for title, names in _CURVES:
        lines = []
        for name in names:
            values = [cast(float, epoch[name]) for epoch in history if epoch[name] is not None]
            if len(values) == len(history):
                lines.append((name.replace("_", " "), values))
        if lines:
            highest = 1.0 if "accuracy" in title.lower() else max(max(values) for _, values in lines) or 1.0
            curves.append({"title": title, "highest": highest, "lines": lines})
    return render_page("training.html", history=history, settings=settings, best=best, curves=curves)
