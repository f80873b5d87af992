"""Presets: what they resolve to for a network, what explicit options change, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.boxes.rules import uses_refined
from camworker.errors import CommitError, UsageError
from camworker.frame import VIEWS, FrameSpec
from camworker.ledger.recipe import Recipe
from camworker.networks.gap import Preprocessing
from camworker.networks.package import NetworkPackage
from camworker.networks.taps import Tap, Taps
from camworker.presets import (
    PRESETS,
    Choices,
    LocalizerOptions,
    build_recipe,
    check_refinement,
    load_for,
    resolve,
)
from camworker.refinement import REFINES, ForegroundHead, Refinement
from support.factories import TINY_CLASSES
from support.tapped_network import tapped_package

HEAD = ForegroundHead(np.array([1.0, 2.0]), np.array([3.0]), 0.5)
NO_TAPS = "no feature map at stride 8"


def a_package(
    size: int = 224, *, head: ForegroundHead | None = HEAD, taps: bool = True, scoring: str = "softmax"
) -> NetworkPackage:
    """Return what resolving and recipes read of a package."""
    found = Taps(Tap("fine", 40, 8), Tap("deep", 112, 16))
    network = SimpleNamespace(
        no_taps_reason=None if taps else NO_TAPS, taps=found if taps else None, pooling="avg"
    )
    package = SimpleNamespace(
        name="n",
        fingerprint="f" * 64,
        classes=TINY_CLASSES,
        network=network,
        foreground=None if head is None else SimpleNamespace(head=head),
        preprocessing=Preprocessing(size, (0.5,) * 3, (0.5,) * 3),
        scoring=scoring,
    )
    return cast(NetworkPackage, package)


SPEC = FrameSpec(224)
FOREGROUND, RIDGE = (Refinement.of(kind, "softmax") for kind in ("foreground", "ridge"))


@pytest.mark.parametrize(
    ("preset", "package", "spec", "refinement", "rule"),
    [
        ("paper", a_package(), SPEC, None, "cam20"),
        ("paper", a_package(299), SPEC, None, "cam20"),
        ("default", a_package(), SPEC, FOREGROUND, "fine:0.625"),
        ("default", a_package(299), FrameSpec(299), FOREGROUND, "fine:0.625"),
        ("default", a_package(head=None), SPEC, RIDGE, "fine:1"),
        ("default", a_package(taps=False), SPEC, None, "cam20"),
        ("best", a_package(), FrameSpec(288), FOREGROUND, "fine:0.55"),
        ("best", a_package(299), FrameSpec(384), FOREGROUND, "fine:0.55"),
        ("best", a_package(head=None), FrameSpec(288), RIDGE, "fine:1"),
        ("best", a_package(10, taps=False), FrameSpec(32), None, "cam20"),
    ],
)
def test_presets(
    preset: Any, package: NetworkPackage, spec: FrameSpec, refinement: Refinement | None, rule: str
) -> None:
    settings = resolve(Choices(preset), package)
    assert (settings.frame_spec, settings.refinement, settings.box_rule) == (spec, refinement, rule)
    assert (settings.head is HEAD) == (refinement is FOREGROUND)
    assert (settings.refined, settings.top_k) == ("best", 5)
    given_up = preset != "paper" and refinement is None
    assert settings.no_refinement == (NO_TAPS if given_up else None)


def test_constants_follow_the_scoring() -> None:
    settings = resolve(Choices(), a_package(scoring="sigmoid"))
    assert settings.refinement == Refinement.of("foreground", "sigmoid") != FOREGROUND


def test_constants_of_ones_own() -> None:
    own = Refinement("ridge", 5.0, 0.3, 0.0)
    settings = resolve(Choices(refine=own), a_package())
    assert (settings.refinement, settings.box_rule, settings.head) == (own, "fine:1", None)


@pytest.mark.parametrize(
    ("options", "refinement", "rule"),
    [
        ({"refine": "ridge"}, RIDGE, "fine:1"),
        ({"refine": "none"}, None, "cam20"),
        ({"preset": "paper", "refine": "ridge"}, RIDGE, "fine:1"),
        ({"preset": "paper", "refine": "ridge", "box_rule": "fine:.50"}, RIDGE, "fine:0.5"),
        ({"box_rule": "cam:.30"}, FOREGROUND, "cam:0.3"),
        ({"box_rule": "fine-multi:0.6"}, FOREGROUND, "fine-multi:0.6"),
        ({"views": "ten-crop"}, None, "cam20"),
        ({"views": "flip"}, FOREGROUND, "fine:0.625"),
    ],
    ids=str,
)
def test_an_option_replaces_a_setting_and_the_rule_follows_the_refinement(
    options: dict[str, Any], refinement: Refinement | None, rule: str
) -> None:
    settings = resolve(Choices(**options), a_package())
    assert (settings.refinement, settings.box_rule) == (refinement, rule)
    assert settings.frame_spec == FrameSpec(224, "squash", options.get("views", "single"))


def test_options_replace_the_frame() -> None:
    settings = resolve(Choices("best", 320, "crop", "flip", refined="all", top_k=3), a_package())
    assert settings.frame_spec == FrameSpec(320, "crop", "flip")
    assert (settings.refined, settings.top_k) == ("all", 3)


@pytest.mark.parametrize(
    ("options", "package", "parameter", "message"),
    [
        ({"refine": "ridge"}, a_package(taps=False), "refine", f"no maps to refine with: {NO_TAPS}"),
        ({"refine": "foreground"}, a_package(head=None), "refine", "no foreground head"),
        ({"box_rule": "fine:1"}, a_package(taps=False), "box_rule", f"there are none: {NO_TAPS}"),
        ({"box_rule": "fine:1", "views": "ten-crop"}, a_package(), "box_rule", "ten crops are not refined"),
    ],
)
def test_what_a_network_cannot_do_is_refused(
    options: dict[str, Any], package: NetworkPackage, parameter: str, message: str
) -> None:
    asked = Choices(**options)
    with pytest.raises(UsageError, match=message) as raised:
        resolve(asked, package)
    assert raised.value.parameter == parameter
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "parameter", "message"),
    [
        ({"preset": "fast"}, "preset", "unknown preset 'fast': choose from paper, default, best"),
        ({"refine": "grabcut"}, "refine", "unknown refine 'grabcut'"),
        ({"refined": "some"}, "refined", "unknown refined 'some'"),
        ({"views": "two"}, "views", "unknown views 'two'"),
        ({"resize": "pad"}, "resize", "unknown resize 'pad'"),
        ({"input_size": 0}, "input_size", "the input size is 0"),
        ({"top_k": 0}, "top_k", "the top k is 0"),
        ({"batch_size": -1}, "batch_size", "the batch size is -1"),
        ({"box_rule": "cam21"}, None, "unknown box rule 'cam21'"),
        ({"box_rule": "fine:1", "refine": "none"}, "box_rule", "fine:1 needs refined maps"),
        ({"box_rule": "fine:1", "preset": "paper"}, "box_rule", "fine:1 needs refined maps"),
        ({"views": "ten-crop", "refine": "ridge"}, "views", "maps of ten crops are not refined"),
    ],
    ids=str,
)
def test_what_no_network_can_do_is_refused_before_one_is_loaded(
    options: dict[str, Any], parameter: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        Choices(**options)
    assert raised.value.parameter == parameter


@given(
    st.sampled_from(PRESETS),
    st.sampled_from([None, *VIEWS]),
    st.sampled_from([None, *REFINES]),
    st.sampled_from([None, "cam20", "dtbox", "fine:1", "fine-multi:0.5"]),
    st.booleans(),
    st.booleans(),
)
def test_settings_always_go_together(
    preset: Any, views: Any, refine: Any, rule: str | None, head: bool, taps: bool
) -> None:
    try:
        settings = resolve(
            Choices(preset, None, None, views, refine, box_rule=rule),
            a_package(head=HEAD if head else None, taps=taps),
        )
    except UsageError:
        return
    refinement = settings.refinement
    assert taps or refinement is None
    assert settings.frame_spec.views != "ten-crop" or refinement is None
    assert not uses_refined(settings.box_rule) or refinement is not None
    assert (settings.head is not None) == (refinement is not None and refinement.kind == "foreground")
    if refine is not None:
        assert refine == ("none" if refinement is None else refinement.kind)
    if rule is not None:
        assert settings.box_rule == rule


def test_the_recipe_holds_what_was_resolved() -> None:
    package = a_package()
    settings = resolve(Choices("best", refined="all"), package)
    recipe = build_recipe(settings, package, 16, "auto")
    assert recipe.refinement == FOREGROUND
    assert (recipe.refined, recipe.head, recipe.taps) == ("all", HEAD.fingerprint, ("fine", "deep"))
    assert (recipe.output_stride, recipe.precision, recipe.frame_spec) == (16, "auto", FrameSpec(288))
    assert Recipe.from_json(recipe.to_json()) == recipe
    raw = build_recipe(resolve(Choices("paper"), package), package, None, "float32")
    assert (raw.refinement, raw.head, raw.taps, raw.output_stride) == (None, None, (), None)
    assert Recipe.from_json(raw.to_json()) == raw


def test_another_head_or_other_taps_are_not_those_of_the_recipe() -> None:
    package = a_package()
    recipe = build_recipe(resolve(Choices(), package), package, None, "auto")
    check_refinement(recipe, package)
    other = ForegroundHead(np.array([1.0, 2.0]), np.array([3.0]), 0.25)
    for changed in (a_package(head=other), a_package(head=None)):
        with pytest.raises(CommitError, match="foreground head has changed"):
            check_refinement(recipe, changed)
    with pytest.raises(CommitError, match="other taps"):
        check_refinement(replace(recipe, taps=("fine",)), package)
    ridge = build_recipe(resolve(Choices(refine="ridge"), package), package, None, "auto")
    check_refinement(ridge, a_package(head=other))  # a ridge needs no head
    raw = build_recipe(resolve(Choices("paper"), package), package, None, "auto")
    check_refinement(raw, a_package(taps=False))


def test_best_dilates_networks_that_can_be_dilated(monkeypatch: pytest.MonkeyPatch) -> None:
    from camworker import presets
    from camworker.errors import NetworkError

    asked = []

    def load(network: str | None, weights: str | None, *, output_stride: int | None = None) -> NetworkPackage:
        asked.append(output_stride)
        if output_stride == 16 and network == "rigid":
            raise NetworkError("it cannot be dilated")
        return tapped_package()

    monkeypatch.setattr(presets, "load", load)
    assert load_for("best", "n")[1] == 16
    assert load_for("best", "rigid")[1] is None
    assert load_for("best", "n", output_stride=8)[1] == 8
    assert load_for("default", "n")[1] is None
    assert asked == [16, 16, None, 8, None]


def test_the_keyword_arguments_of_a_localizer_are_listed_once() -> None:
    from inspect import signature

    from camworker.inference.localizer import Localizer

    names = set(signature(Localizer.__init__).parameters) - {"self", "package"}
    assert names == set(LocalizerOptions.__annotations__)
