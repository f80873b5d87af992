"""Recipes for tests: those of a small network, with any setting changed."""

from collections.abc import Sequence
from typing import Any

from camworker.classes import Classes
from camworker.frame import FrameSpec, Resize, Views
from camworker.ledger.recipe import Recipe


def make_recipe(
    class_names: Sequence[str] = ("cat", "dog", "bird"),
    class_ids: Sequence[str] | None = None,
    *,
    input_size: int = 32,
    resize: Resize = "squash",
    views: Views = "single",
    **settings: Any,
) -> Recipe:
    """Return the recipe of a small network; `settings` are further fields of `Recipe` to set."""
    half = (0.5, 0.5, 0.5)
    defaults = {
        "network": "tiny",
        "weights_fingerprint": "0" * 64,
        "mean": half,
        "std": half,
        "pooling": "avg",
        "scoring": "softmax",
        "output_stride": None,
        "box_rule": "cam20",
        "top_k": 3,
        "precision": "float32",
    }
    return Recipe(
        classes=Classes(tuple(class_names), None if class_ids is None else tuple(class_ids)),
        frame_spec=FrameSpec(input_size, resize, views),
        **defaults | settings,
    )
