"""`Recipe`: every setting that decides the content of a row, and the id under which its rows are stored."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from camworker.classes import Classes
from camworker.errors import CorruptedError, UsageError
from camworker.frame import RESIZES, VIEWS, FrameSpec
from camworker.refinement import Refinement
from camworker.schemas import (
    POOLINGS,
    PRECISIONS,
    REFINED,
    SCHEMA_VERSION,
    SCORINGS,
    Pooling,
    Precision,
    Refined,
    Scoring,
)

# Raised whenever the same settings would give other rows than before.
ALGORITHM: Final = 2

_Value = TypeVar("_Value", str, int)
_Choice = TypeVar("_Choice", bound=str)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Recipe:
    """The settings that decide the content of a row: two runs with equal recipes write equal rows.

    Attributes:
        network: Name of the network's architecture, as `camworker networks` lists it.
        weights_fingerprint: SHA-256 over the content of the network's weights, as hex digits.
        classes: The classes that the network was trained for.
        frame_spec: How an image is fitted into the network's input, and which views of it are evaluated.
        mean: Mean of each colour channel, R, G, B, of pixels scaled to 0..1, subtracted before the network.
        std: Standard deviation of each colour channel, by which the network's input is divided.
        pooling: How the network pools its features: their average or their maximum.
        scoring: How logits become the scores of a row.
        output_stride: Pixels per cell of the feature map, if it was changed by dilation; None for the
            network's own.
        refinement: How class activation maps are refined; None if they are not.
        refined: Whose refined maps a row holds.
        head: Fingerprint of the foreground head that the refinement uses; None without one.
        taps: Names of the graph nodes whose output the refinement uses: that at stride 8, and that at stride
            16 if there is one. Empty without refinement.
        box_rule: How boxes are made from maps, see `camworker.boxes.check_rule`.
        top_k: Number of classes that a row ranks.
        precision: The precision in which the network runs.
        schema_version: Version of the columns, see `camworker.schemas.SCHEMA_VERSION`.
        algorithm: Version of the computation, see `ALGORITHM`.
    """

    network: str
    weights_fingerprint: str
    classes: Classes
    frame_spec: FrameSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    scoring: Scoring
    output_stride: int | None
    box_rule: str
    top_k: int
    precision: Precision
    refinement: Refinement | None = None
    refined: Refined = "best"
    head: str | None = None
    taps: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
    algorithm: int = ALGORITHM

    @property
    def id(self) -> str:
        """The name of the recipe in an output: "r" and 12 hex digits of a hash of `to_json`."""
        return recipe_id(self.to_json())

    def to_json(self) -> dict[str, object]:
        """Return the content of recipe.json. The order and the names of its keys never change."""
        return {
            "schema_version": self.schema_version,
            "algorithm": self.algorithm,
            "network": self.network,
            "weights": self.weights_fingerprint,
            "class_names": list(self.classes.names),
            "class_ids": None if self.classes.ids is None else list(self.classes.ids),
            "preprocessing": {
                "input_size": self.frame_spec.input_size,
                "mean": list(self.mean),
                "std": list(self.std),
                "resize": self.frame_spec.resize,
            },
            "pooling": self.pooling,
            "scoring": self.scoring,
            "output_stride": self.output_stride,
            "views": self.frame_spec.views,
            "refinement": None if self.refinement is None else self.refinement.to_json(),
            "refined": self.refined,
            "head": self.head,
            "taps": list(self.taps),
            "box_rule": self.box_rule,
            "top_k": self.top_k,
            "precision": self.precision,
        }

    def settings(self) -> dict[str, object]:
        """Return every setting, also those of the preprocessing, by its name in recipe.json."""
        flat = self.to_json()
        return flat | _mapping(flat.pop("preprocessing"), "preprocessing")

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Return the recipe that recipe.json describes.

        Args:
            content: The parsed JSON.

        Raises:
            UsageError: Another version of camworker wrote it, with other columns.
            CorruptedError: A setting is missing or has a value that no recipe can have.
        """
        from camworker.boxes.rules import check_rule  # loads OpenCV

        settings = _mapping(content, "the recipe")
        version = _get(settings, "schema_version", int)
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"its schema version is {version}, and this version of camworker reads {SCHEMA_VERSION}"
            )
        preprocessing = _mapping(settings.get("preprocessing"), "preprocessing")
        class_names = _texts(settings, "class_names")
        class_ids = _optional(settings, "class_ids", _texts)
        try:
            classes = Classes(class_names, class_ids)
        except UsageError as error:
            raise CorruptedError(str(error)) from error
        recipe = cls(
            network=_get(settings, "network", str),
            weights_fingerprint=_get(settings, "weights", str),
            classes=classes,
            frame_spec=FrameSpec(
                _count(preprocessing, "input_size"),
                _choice(preprocessing, "resize", RESIZES),
                _choice(settings, "views", VIEWS),
            ),
            mean=_three(preprocessing, "mean"),
            std=_three(preprocessing, "std"),
            pooling=_choice(settings, "pooling", POOLINGS),
            scoring=_choice(settings, "scoring", SCORINGS),
            output_stride=_optional(settings, "output_stride", _count),
            box_rule=_get(settings, "box_rule", str),
            top_k=_count(settings, "top_k"),
            precision=_choice(settings, "precision", PRECISIONS),
            refinement=_optional(settings, "refinement", _refinement),
            refined=_choice(settings, "refined", REFINED),
            head=_optional(settings, "head", _text),
            taps=_texts(settings, "taps"),
            schema_version=version,
            algorithm=_count(settings, "algorithm"),
        )
        try:
            check_rule(recipe.box_rule)
        except UsageError as error:
            raise CorruptedError(str(error)) from error
        kind = None if recipe.refinement is None else recipe.refinement.kind
        if (recipe.head is not None) != (kind == "foreground") or bool(recipe.taps) != bool(kind):
            raise CorruptedError("head and taps do not fit the refinement")
        return recipe


def recipe_id(content: object) -> str:
    """Return the id of a recipe whose recipe.json has this content, whether or not it is valid."""
    return f"r{json_digest(content)[:12]}"


def json_digest(content: object) -> str:
    """Return the SHA-256, as hex digits, of a JSON value; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _mapping(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CorruptedError(f"{name} is not a JSON object")
    return value


def _get(settings: Mapping[str, object], name: str, kind: type[_Value]) -> _Value:
    value = settings.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CorruptedError(f"{name} is {_shown(settings, name)}")
    return value


def _count(settings: Mapping[str, object], name: str) -> int:
    value = _get(settings, name, int)
    if value < 1:
        raise CorruptedError(f"{name} is {value}")
    return value


def _optional(
    settings: Mapping[str, object], name: str, read: Callable[[Mapping[str, object], str], _Read]
) -> _Read | None:
    """Read a setting that can be null; that it is missing is an error all the same."""
    return None if settings.get(name, "") is None else read(settings, name)


def _choice(settings: Mapping[str, object], name: str, choices: Sequence[_Choice]) -> _Choice:
    for choice in choices:
        if settings.get(name) == choice:
            return choice
    raise CorruptedError(f"{name} is {_shown(settings, name)}")


def _text(settings: Mapping[str, object], name: str) -> str:
    return _get(settings, name, str)


def _refinement(settings: Mapping[str, object], name: str) -> Refinement:
    return Refinement.from_json(_mapping(settings.get(name), name))


def _texts(settings: Mapping[str, object], name: str) -> tuple[str, ...]:
    values = settings.get(name)
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return tuple(values)
    raise CorruptedError(f"{name} is {_shown(settings, name)}")


def _three(settings: Mapping[str, object], name: str) -> tuple[float, float, float]:
    match settings.get(name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue] if all(
            math.isfinite(value) for value in (red, green, blue)
        ):
            return red, green, blue
    raise CorruptedError(f"{name} is {_shown(settings, name)}")


def _shown(settings: Mapping[str, object], name: str) -> str:
    return repr(settings[name])[:100] if name in settings else "missing"
