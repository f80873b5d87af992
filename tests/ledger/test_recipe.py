"""Recipes: the content of recipe.json, its id, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from camworker.classes import Classes
from camworker.errors import CorruptedError, UsageError
from camworker.frame import FrameSpec
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import ALGORITHM, Recipe, recipe_id
from camworker.refinement import Refinement
from camworker.storage.memory import MemoryStore
from support.recipes import make_recipe

# recipe.json of an output of the demo's network, with two of its classes. Outputs hold such files: neither
# the bytes nor the id may ever change.
EXAMPLE = """{
 "schema_version": 2,
 "algorithm": 2,
 "network": "efficientnet_lite0",
 "weights": "ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2",
 "class_names": [
  "tench",
  "café"
 ],
 "class_ids": [
  "n01440764",
  "n99999999"
 ],
 "preprocessing": {
  "input_size": 224,
  "mean": [
   0.5,
   0.5,
   0.5
  ],
  "std": [
   0.5,
   0.5,
   0.5
  ],
  "resize": "squash"
 },
 "pooling": "avg",
 "scoring": "softmax",
 "output_stride": null,
 "views": "single",
 "refinement": {
  "kind": "foreground",
  "slope": 8.0,
  "cam_exponent": 0.25,
  "head_exponent": 0.5
 },
 "refined": "best",
 "head": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
 "taps": [
  "blocks_2_1_add",
  "blocks_4_2_add"
 ],
 "box_rule": "fine:0.625",
 "top_k": 5,
 "precision": "float32"
}"""
EXAMPLE_ID = "r2b06a35f7dd3"
# The same without class ids and with an output stride of 16.
STRIDE_16_ID = "r3248e595fa6a"

RECIPE = Recipe(
    network="efficientnet_lite0",
    weights_fingerprint="ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2",
    classes=Classes(("tench", "café"), ("n01440764", "n99999999")),
    frame_spec=FrameSpec(224, "squash", "single"),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    pooling="avg",
    scoring="softmax",
    output_stride=None,
    box_rule="fine:0.625",
    top_k=5,
    precision="float32",
    refinement=Refinement.of("foreground", "softmax"),
    head="5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    taps=("blocks_2_1_add", "blocks_4_2_add"),
)


def content(**changes: Any) -> dict[str, Any]:
    return {**json.loads(EXAMPLE), **changes}


def test_the_file_and_the_id_never_change() -> None:
    ledger = Ledger(MemoryStore(), RECIPE.id)
    ledger.write_recipe(RECIPE)
    assert RECIPE.id == EXAMPLE_ID
    assert ledger.store.read(f"ledger/recipe={EXAMPLE_ID}/recipe.json").decode() == EXAMPLE
    assert replace(RECIPE, classes=Classes(RECIPE.classes.names), output_stride=16).id == STRIDE_16_ID


def test_round_trip() -> None:
    assert Recipe.from_json(json.loads(EXAMPLE)) == RECIPE
    other = make_recipe(views="ten-crop", resize="crop", output_stride=8, precision="bfloat16")
    assert Recipe.from_json(json.loads(json.dumps(other.to_json()))) == other
    ridge = replace(other, refinement=Refinement.of("ridge", "sigmoid"), refined="all", taps=("layer2",))
    assert Recipe.from_json(json.loads(json.dumps(ridge.to_json()))) == ridge


def test_the_id_does_not_depend_on_the_order_of_keys() -> None:
    assert recipe_id(dict(reversed(content().items()))) == EXAMPLE_ID


@pytest.mark.parametrize(
    "change",
    [
        {"network": "resnet50"},
        {"weights_fingerprint": "0" * 64},
        {"classes": Classes(("tench", "cafe"), ("n01440764", "n99999999"))},
        {"frame_spec": FrameSpec(224, "crop", "single")},
        {"frame_spec": FrameSpec(224, "squash", "flip")},
        {"mean": (0.5, 0.5, 0.25)},
        {"std": (0.5, 0.5, 0.25)},
        {"pooling": "max"},
        {"scoring": "sigmoid"},
        {"output_stride": 8},
        {"box_rule": "dtbox"},
        {"top_k": 6},
        {"precision": "bfloat16"},
        {"algorithm": ALGORITHM + 1},
        {"schema_version": 3},
        {"refinement": Refinement.of("foreground", "sigmoid")},
        {"refinement": None},
        {"refined": "all"},
        {"head": "0" * 64},
        {"taps": ("blocks_2_1_add",)},
    ],
)
def test_every_setting_changes_the_id(change: dict[str, Any]) -> None:
    assert replace(RECIPE, **change).id != EXAMPLE_ID


def test_settings_hold_those_of_the_preprocessing() -> None:
    settings = RECIPE.settings()
    assert settings["input_size"] == 224
    assert settings["mean"] == [0.5, 0.5, 0.5]
    assert settings["views"] == "single"
    assert "preprocessing" not in settings


@pytest.mark.parametrize("name", [*content()])
def test_a_missing_setting_is_named(name: str) -> None:
    damaged = content()
    del damaged[name]
    with pytest.raises(CorruptedError, match=f"^{name} is (missing|not a JSON object)$"):
        Recipe.from_json(damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": "5"}, "top_k is '5'"),
        ({"top_k": True}, "top_k is True"),
        ({"top_k": 0}, "top_k is 0"),
        ({"output_stride": -16}, "output_stride is -16"),
        ({"box_rule": "cam30"}, "unknown box rule 'cam30'"),
        ({"box_rule": "maxboxacc:0.2"}, "maxboxacc"),
        ({"refinement": "ridge"}, "refinement is not a JSON object"),
        ({"refinement": {"kind": "ridge", "slope": 6}}, "cam_exponent of the refinement is None"),
        ({"refinement": None}, "head and taps do not fit the refinement"),
        ({"head": None}, "head and taps do not fit the refinement"),
        ({"head": 5}, "head is 5"),
        ({"taps": []}, "head and taps do not fit the refinement"),
        ({"taps": "blocks_2_1_add"}, "taps is 'blocks_2_1_add'"),
        ({"refined": "some"}, "refined is 'some'"),
        ({"views": "two"}, "views is 'two'"),
        ({"class_names": "tench"}, "class_names is 'tench'"),
        ({"class_names": [1, 2]}, r"class_names is \[1, 2\]"),
        ({"class_ids": ["n01440764"]}, "1 class ids for 2 class names"),
        ({"preprocessing": []}, "preprocessing is not a JSON object"),
        ({"preprocessing": {"input_size": 224, "resize": "squash", "mean": [0.5], "std": [1]}}, "mean is"),
    ],
)
def test_a_setting_of_another_kind_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptedError, match=message):
        Recipe.from_json(content(**changes))


def test_a_recipe_of_another_schema_is_refused() -> None:
    with pytest.raises(UsageError, match="its schema version is 1, and this version of camworker reads 2"):
        Recipe.from_json(content(schema_version=1))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"{", CorruptedError, r"recipe\.json is not a recipe \(.*\): run camworker verify OUT"),
        (b"[]", CorruptedError, r"recipe\.json is not a recipe \(the recipe is not a JSON object\)"),
        (b"{}", CorruptedError, r"recipe\.json is not a recipe \(schema_version is missing\)"),
        (b'{"schema_version": 1}', UsageError, r"recipe\.json cannot be read: its schema version is 1"),
        (b"\xff", CorruptedError, r"recipe\.json is not a recipe"),
        (None, CorruptedError, r"recipe\.json is missing: run camworker verify OUT"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_a_line(
    data: bytes | None, error: type[Exception], message: str
) -> None:
    ledger = Ledger(MemoryStore(), EXAMPLE_ID)
    if data is not None:
        ledger.store.create(f"ledger/recipe={EXAMPLE_ID}/recipe.json", data)
    with pytest.raises(error, match=message) as raised:
        ledger.read_recipe()
    assert "\n" not in str(raised.value)
