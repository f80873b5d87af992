"""How class activation maps are refined: the kinds, their constants, and the learned foreground head.

`camworker.boxes.refine` computes the maps. The formulas: camworker/README.md, Refined maps.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from camworker.errors import CorruptedError
from camworker.schemas import Scoring

Refine = Literal["none", "ridge", "foreground"]
REFINES: Final[tuple[Refine, ...]] = get_args(Refine)
RefinementKind = Literal["ridge", "foreground"]

# Of a stage with more channels the first ones are used: as good as principal components, and a Gram matrix of
# this size costs less than the network's own work on one image.
MAX_TAP_CHANNELS: Final = 64
# Of the stage at stride 16, which only the foreground head reads. With the first 64 of the 112 channels of
# EfficientNet-Lite0, GT-known accuracy on 300 ILSVRC images is .727 in place of .740.
MAX_DEEP_CHANNELS: Final = 128

# The box rule with the foreground head at 288 pixels and output stride 16: of 14 thresholds the one
# with the highest sum of the GT-known accuracies at IoU 0.5 and 0.7 on 300 ILSVRC images, .740 and .540
# (fine:0.625: .737 and .513). With it 200 raccoons give .845 and .500 (.820 and .490).
FINER_FOREGROUND_RULE: Final = "fine:0.55"

_SLOPES: Final[dict[RefinementKind, float]] = {"ridge": 6.0, "foreground": 8.0}
_CAM_EXPONENTS: Final[dict[Scoring, float]] = {"softmax": 0.25, "sigmoid": 0.5}


@dataclass(frozen=True, eq=False)
class ForegroundHead:
    """A linear score of objects of any class: a 1x1 convolution on each of two feature maps.

    The score of a position is fine_C . fine + deep_C . deep + bias, where the deep part is upsampled to the
    fine grid. It is fitted to +1 on objects and -1 on the background.

    Attributes:
        fine_C: Weights of the channels at stride 8, float64 [C8].
        deep_C: Weights of the channels at stride 16, float64 [C16]; empty for a network without such a map.
        bias: The constant.

    Raises:
        ValueError: A number is not finite.
    """

    fine_C: NDArray[np.float64]
    deep_C: NDArray[np.float64]
    bias: float

    def __post_init__(self) -> None:
        if not all(np.isfinite(values).all() for values in (self.fine_C, self.deep_C, self.bias)):
            raise ValueError("the foreground head holds numbers that are not finite")

    @property
    def fingerprint(self) -> str:
        """The SHA-256 over the numbers, as hex digits."""
        counts = np.array([len(self.fine_C), len(self.deep_C)])
        numbers = np.concatenate([counts, self.fine_C, self.deep_C, [self.bias]])
        return hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Refinement:
    """How a class activation map is refined; part of a recipe.

    Attributes:
        kind: "ridge" needs nothing but the features of an image; "foreground" also a `ForegroundHead`.
        slope: k in sigmoid(k X w), the contrast of the regressed map.
        cam_exponent: The power of the scaled map U by which a refined map is multiplied.
        head_exponent: The power of the head's probability L by which it is multiplied; not used by "ridge".
    """

    kind: RefinementKind
    slope: float
    cam_exponent: float
    head_exponent: float

    @classmethod
    def of(cls, kind: RefinementKind, scoring: Scoring) -> Self:
        """Return the refinement of a kind with its default constants.

        The refined map of a network that scores by sigmoid follows the class activation map more closely,
        because several classes share an image: on pairs of photographs side by side, GT-known localization
        accuracy is .592 with an exponent of 1/2 and .533 with 1/4.
        """
        return cls(kind, _SLOPES[kind], _CAM_EXPONENTS[scoring], 0.5 if kind == "foreground" else 0.0)

    def to_json(self) -> dict[str, object]:
        """Return the content for recipe.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Return the refinement that `to_json` described.

        Raises:
            CorruptedError: A constant is missing or is not a number, or the kind is unknown.
        """
        values = content if isinstance(content, Mapping) else {}
        for kind in get_args(RefinementKind):
            if values.get("kind") == kind:
                return cls(kind, *(_number(values, name) for name in cls.__slots__[1:]))
        raise CorruptedError(f"the refinement is {content!r:.100}")


def default_rule(refine: Refine) -> str:
    """Return the box rule that goes with a kind of refinement."""
    rules: dict[Refine, str] = {"none": "cam20", "ridge": "fine:1", "foreground": "fine:0.625"}
    return rules[refine]


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptedError(f"{name} of the refinement is {value!r:.100}")
    return float(value)
