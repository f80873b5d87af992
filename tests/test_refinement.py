"""The kinds of refinement, their constants and the foreground head."""

import json

import numpy as np
import pytest

from camworker.errors import CorruptedError
from camworker.refinement import ForegroundHead, Refinement, default_rule


def test_constants_by_kind_and_scoring() -> None:
    assert Refinement.of("ridge", "softmax") == Refinement("ridge", 6, 0.25, 0)
    assert Refinement.of("ridge", "sigmoid") == Refinement("ridge", 6, 0.5, 0)
    assert Refinement.of("foreground", "softmax") == Refinement("foreground", 8, 0.25, 0.5)
    assert Refinement.of("foreground", "sigmoid") == Refinement("foreground", 8, 0.5, 0.5)


def test_json_gives_the_refinement_back() -> None:
    for kind in ("ridge", "foreground"):
        refinement = Refinement.of(kind, "sigmoid")
        assert Refinement.from_json(json.loads(json.dumps(refinement.to_json()))) == refinement


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"kind": "none"},
        {"kind": "ridge", "slope": 6, "cam_exponent": 0.25},
        {"kind": "ridge", "slope": "6", "cam_exponent": 0.25, "head_exponent": 0},
        {"kind": "ridge", "slope": True, "cam_exponent": 0.25, "head_exponent": 0},
    ],
)
def test_other_json_is_corrupted(content: object) -> None:
    with pytest.raises(CorruptedError, match="refinement"):
        Refinement.from_json(content)


def test_the_rule_of_each_kind() -> None:
    assert [default_rule(kind) for kind in ("none", "ridge", "foreground")] == [
        "cam20",
        "fine:1",
        "fine:0.625",
    ]


def test_the_fingerprint_is_that_of_the_numbers() -> None:
    head = ForegroundHead(np.array([1.0, 2]), np.array([3.0]), 0.5)
    assert head.fingerprint == ForegroundHead(np.array([1.0, 2]), np.array([3.0]), 0.5).fingerprint
    others = [
        ForegroundHead(np.array([1.0]), np.array([2.0, 3]), 0.5),
        ForegroundHead(np.array([1.0, 2]), np.array([3.0]), 0.25),
        ForegroundHead(np.array([1.0, np.nextafter(2, 3)]), np.array([3.0]), 0.5),
    ]
    assert len({head.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_head_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        ForegroundHead(np.array([np.nan]), np.zeros(0), 0.0)
    with pytest.raises(ValueError, match="not finite"):
        ForegroundHead(np.zeros(1), np.zeros(0), float("inf"))
