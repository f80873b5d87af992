"""Presets: settings that go together, and how explicit options change them.

| preset | input size | output stride | refinement | box rule |
| --- | --- | --- | --- | --- |
| paper | 224 | the network's | none | cam20 |
| default | the network's | the network's | foreground, else ridge, else none | that of the refinement |
| best | 9/7 of the network's | 16 if possible | as default | fine:0.55 with foreground, else as default |

All of them squash an image into the input and evaluate a single view.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypedDict, get_args

from camworker.boxes.rules import check_rule, uses_refined
from camworker.errors import CommitError, NetworkError, UsageError
from camworker.frame import RESIZES, VIEWS, FrameSpec, Resize, Views
from camworker.ledger.recipe import Recipe
from camworker.networks.package import NetworkPackage, load
from camworker.refinement import (
    FINER_FOREGROUND_RULE,
    REFINES,
    ForegroundHead,
    Refine,
    Refinement,
    default_rule,
)
from camworker.schemas import REFINED, Precision, Refined

if TYPE_CHECKING:
    import torch

Preset = Literal["paper", "default", "best"]
PRESETS: Final[tuple[Preset, ...]] = get_args(Preset)

_PAPER_SIZE: Final = 224
_BEST_STRIDE: Final = 16
_BEST_SCALE: Final = 9 / 7  # 288 pixels for a network of 224
_BEST_STEP: Final = 32


class LocalizerOptions(TypedDict, total=False):
    """The keyword arguments of `camworker.Localizer`, which describes them."""

    preset: Preset
    device: "str | torch.device | None"
    precision: Precision
    top_k: int
    input_size: int | None
    resize: Resize | None
    views: Views | None
    refine: Refine | Refinement | None
    refined: Refined
    box_rule: str | None
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class Choices:
    """What was asked for; None leaves a setting to the preset.

    Attributes:
        preset: The name of the preset.
        input_size: Side of the network's square input, in pixels.
        resize: How an image is fitted into the square.
        views: Which views of an image are evaluated.
        refine: How class activation maps are refined, with constants of one's own or with the defaults.
        refined: Whose refined maps a row holds.
        box_rule: How boxes are made.
        top_k: Number of classes that a row ranks.
        batch_size: The most images in the network at a time.

    Raises:
        UsageError: A value is unknown, or values do not go together for any network.
    """

    preset: Preset = "default"
    input_size: int | None = None
    resize: Resize | None = None
    views: Views | None = None
    refine: Refine | Refinement | None = None
    refined: Refined = "best"
    box_rule: str | None = None
    top_k: int = 5
    batch_size: int | None = None

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, tuple[str, ...]]] = {
            "preset": (self.preset, PRESETS),
            "resize": (self.resize, RESIZES),
            "views": (self.views, VIEWS),
            "refine": (self.kind, REFINES),
            "refined": (self.refined, REFINED),
        }
        for name, (value, known) in choices.items():
            if value is not None and value not in known:
                raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(known)}", parameter=name)
        numbers = {"input_size": self.input_size, "top_k": self.top_k, "batch_size": self.batch_size}
        for name, number in numbers.items():
            if number is not None and number < 1:
                shown = name.replace("_", " ")
                raise UsageError(f"the {shown} is {number}: it has to be at least 1", parameter=name)
        if self.views == "ten-crop" and self.kind in ("ridge", "foreground"):
            raise UsageError("maps of ten crops are not refined: choose single or flip", parameter="views")
        if self.box_rule is not None and uses_refined(check_rule(self.box_rule)):
            presets_own: Refine = "none" if self.preset == "paper" else "ridge"
            _check_fine_rule(self.box_rule, self.kind or presets_own, None)

    @property
    def kind(self) -> Refine | None:
        """The kind of refinement."""
        return self.refine.kind if isinstance(self.refine, Refinement) else self.refine


@dataclass(frozen=True, slots=True)
class Settings:
    """How images are localized, in full.

    Attributes:
        frame_spec: How an image is fitted into the network's input, and which of its views are evaluated.
        refinement: How class activation maps are refined; None if they are not.
        refined: Whose refined maps a row holds.
        head: The foreground head that the refinement uses; None if it uses none.
        box_rule: How boxes are made from maps.
        top_k: Number of classes that a row ranks; at most the number of the network's classes is used.
        no_refinement: Why the preset's refinement was given up; None if it was not.
    """

    frame_spec: FrameSpec
    refinement: Refinement | None
    refined: Refined
    head: ForegroundHead | None
    box_rule: str
    top_k: int
    no_refinement: str | None = None


def resolve(choices: Choices, package: NetworkPackage) -> Settings:
    """Return the settings that a preset and explicit options make for a network.

    An explicit option replaces the preset's single value; the box rule follows the refinement that results. A
    refinement that only the preset asks for is given up where it is impossible; one that was asked for is
    refused.

    Args:
        choices: What was asked for.
        package: The network.

    Raises:
        UsageError: The network cannot do what was asked for.
    """
    views = choices.views or "single"
    refine, reason = choices.kind, None
    if refine is None:
        refine, reason = _preset_refinement(choices.preset, views, package)
    elif refine != "none" and (no_taps := package.network.no_taps_reason):
        raise UsageError(f"the network has no maps to refine with: {no_taps}", parameter="refine")
    elif refine == "foreground" and package.foreground is None:
        raise UsageError(
            "the network has no foreground head: choose ridge, or fit a head first", parameter="refine"
        )
    finer = choices.preset == "best" and refine == "foreground"
    box_rule = check_rule(choices.box_rule or (FINER_FOREGROUND_RULE if finer else default_rule(refine)))
    _check_fine_rule(box_rule, refine, reason)
    size = choices.input_size or _preset_size(choices.preset, package.preprocessing.input_size)
    refinement = None if refine == "none" else Refinement.of(refine, package.scoring)
    return Settings(
        FrameSpec(size, choices.resize or "squash", views),
        choices.refine if isinstance(choices.refine, Refinement) else refinement,
        choices.refined,
        package.foreground.head if refine == "foreground" and package.foreground else None,
        box_rule,
        choices.top_k,
        reason,
    )


def build_recipe(
    settings: Settings, package: NetworkPackage, output_stride: int | None, precision: Precision
) -> Recipe:
    """Return the recipe of the rows that a network makes.

    Args:
        settings: How images are localized.
        package: The network.
        output_stride: The output stride that it was loaded with; None for its own.
        precision: The precision of the network, as it was asked for.
    """
    return Recipe(
        network=package.name,
        weights_fingerprint=package.fingerprint,
        classes=package.classes,
        frame_spec=settings.frame_spec,
        mean=package.preprocessing.mean,
        std=package.preprocessing.std,
        pooling=package.network.pooling,
        scoring=package.scoring,
        output_stride=output_stride,
        refinement=settings.refinement,
        refined=settings.refined,
        head=None if settings.head is None else settings.head.fingerprint,
        taps=() if settings.refinement is None else _tap_names(package),
        box_rule=settings.box_rule,
        top_k=settings.top_k,
        precision=precision,
    )


def check_refinement(recipe: Recipe, package: NetworkPackage) -> None:
    """Check that a package has the foreground head and the taps of a recipe.

    Raises:
        CommitError: It has others.
    """
    if recipe.refinement is None:
        return
    head = None if package.foreground is None else package.foreground.head.fingerprint
    if recipe.head is not None and recipe.head != head:
        raise CommitError("the network's foreground head has changed since this run was planned")
    if recipe.taps != _tap_names(package):
        raise CommitError("the network's graph has changed since this run was planned: it has other taps")


def load_for(
    preset: Preset,
    network: str | None = None,
    weights: str | None = None,
    *,
    output_stride: int | None = None,
) -> tuple[NetworkPackage, int | None]:
    """Load a network with the output stride of a preset.

    Args:
        preset: The name of the preset.
        network: See `camworker.networks.package.load`.
        weights: See `camworker.networks.package.load`.
        output_stride: The output stride that was asked for; None leaves it to the preset. "best" dilates the
            networks that can be dilated.

    Returns:
        The package, and its output stride; None for the network's own.

    Raises:
        NetworkError: The network or its weights are refused.
    """
    if output_stride is None and preset == "best":
        try:
            return load(network, weights, output_stride=_BEST_STRIDE), _BEST_STRIDE
        except NetworkError:  # what else may be wrong is found again without a stride
            return load(network, weights), None
    return load(network, weights, output_stride=output_stride), output_stride


def _preset_size(preset: Preset, own: int) -> int:
    """Return a preset's side of the network's input, in pixels, for a network whose own is `own`."""
    if preset == "paper":
        return _PAPER_SIZE
    return own if preset == "default" else max(1, round(own * _BEST_SCALE / _BEST_STEP)) * _BEST_STEP


def _preset_refinement(preset: Preset, views: Views, package: NetworkPackage) -> tuple[Refine, str | None]:
    """Return the refinement that a preset makes of a network, and why it is less than the preset wants."""
    if preset == "paper":
        return "none", None
    if views == "ten-crop":
        return "none", "maps of ten crops are not refined"
    if reason := package.network.no_taps_reason:
        return "none", reason
    return ("ridge" if package.foreground is None else "foreground"), None


def _tap_names(package: NetworkPackage) -> tuple[str, ...]:
    taps = package.network.taps
    return () if taps is None else tuple(tap.node for tap in taps.all)


def _check_fine_rule(box_rule: str, refine: Refine, reason: str | None) -> None:
    if refine == "none" and uses_refined(box_rule):
        why = f": {reason}" if reason else ""
        raise UsageError(
            f"box rule {box_rule} needs refined maps, and there are none{why}", parameter="box_rule"
        )
