"""Network packages: the default one, the round trip to disk, and what is refused when loading."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from camworker.classes import Classes
from camworker.errors import NetworkError, UsageError
from camworker.networks.foreground import MANY_CLASSES, effective_classes, fit_head
from camworker.networks.foreground_file import write_foreground
from camworker.networks.gap_check import check_gap_head
from camworker.networks.package import (
    NetworkPackage,
    Preprocessing,
    build_for_training,
    build_package,
    load,
    save,
)
from camworker.networks.registry import DEFAULT, create_network
from support.factories import tiny_package

HALF = (0.5, 0.5, 0.5)


def package_of(names: tuple[str, ...], **changed: object) -> NetworkPackage:
    """The default architecture with random weights and without a fingerprint, which no test reads."""
    torch.manual_seed(1)
    network = create_network(DEFAULT, classes=len(names), pooling=changed.pop("pooling", "avg"))
    package = NetworkPackage(DEFAULT, network, Classes(names), Preprocessing(160, HALF, HALF), "softmax", "")
    return replace(package, **changed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A valid package of three classes on disk, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("package")
    save(package_of(("cat", "dog", "bird")), folder)
    return folder


@pytest.fixture
def spoil(saved, tmp_path):
    """A function that returns a copy of the package whose state or description is changed in place."""

    def spoiled(state=lambda tensors: None, description=lambda described: None):
        tensors = safetensors.torch.load_file(saved / "weights.safetensors")
        described = json.loads((saved / "network.json").read_text())
        state(tensors)
        description(described)
        safetensors.torch.save_file(tensors, tmp_path / "weights.safetensors")
        (tmp_path / "network.json").write_text(json.dumps(described))
        return str(tmp_path)

    return spoiled


def refusal(network: str = DEFAULT, weights: str | None = None) -> str:
    """The message of the NetworkError that loading raises; it has to be one line of plain text."""
    with pytest.raises(UsageError) as caught:
        load(network, weights)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) > 20, message
    return message


def test_the_default_package(default_package):
    classes = default_package.classes
    assert len(set(classes.names)) == len(classes.names) == 1000
    assert len(set(classes.ids)) == len(classes.ids) == 1000
    assert all(re.fullmatch(r"n\d{8}", wordnet_id) for wordnet_id in classes.ids)
    assert classes.names[388] == "giant panda"
    assert classes.ids[388] == "n02510455"
    assert (classes.names[0], classes.ids[0]) == ("tench", "n01440764")
    assert classes.names[999] == "toilet tissue"
    assert default_package.preprocessing == Preprocessing(224, HALF, HALF)
    assert default_package.scoring == "softmax"
    assert not default_package.network.training
    assert all(tensor.isfinite().all() for tensor in default_package.network.state_dict().values())


def test_round_trip(default_package, tmp_path):
    save(default_package, tmp_path / "new" / "package")
    again = load(str(tmp_path / "new" / "package"))
    assert again.fingerprint == default_package.fingerprint
    assert again.classes == default_package.classes
    assert again.preprocessing == default_package.preprocessing
    assert (again.name, again.scoring) == (default_package.name, default_package.scoring)
    images_BCHW = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(again.network(images_BCHW)[1], default_package.network(images_BCHW)[1])


def test_round_trip_of_another_network(tmp_path):
    preprocessing = Preprocessing(160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    package = package_of(("cat", "dog"), preprocessing=preprocessing, scoring="sigmoid", pooling="max")
    save(package, tmp_path)
    for again in (load(str(tmp_path)), load(weights=str(tmp_path))):
        assert again.classes == package.classes
        assert again.preprocessing == preprocessing
        assert (again.scoring, again.network.pooling) == ("sigmoid", "max")


def test_a_package_is_not_overwritten(tmp_path, saved):
    before = (saved / "network.json").read_bytes()
    with pytest.raises(NetworkError, match="already"):
        save(tiny_package(), saved)
    assert (saved / "network.json").read_bytes() == before


def test_the_fingerprint_depends_on_the_content_only(saved, spoil):
    fingerprint = load(str(saved)).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert load(spoil(lambda tensors: None)).fingerprint == fingerprint

    changed = spoil(lambda tensors: tensors["classifier.weight"][1, 2].add_(1e-4))
    assert load(changed).fingerprint != fingerprint


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_file_of_weights(default_package, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {key: tensor.contiguous() for key, tensor in default_package.network.model.state_dict().items()}
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert load(weights=str(path)).fingerprint == default_package.fingerprint


def test_tensors_are_found_by_name_in_any_order(default_package, tmp_path):
    # Two of one shape change places: only the names tell which is which.
    state = dict(default_package.network.model.state_dict())
    keys = list(state)
    place = keys.index("bn1.weight")
    keys[place : place + 2] = reversed(keys[place : place + 2])
    torch.save({key: state[key] for key in keys}, tmp_path / "weights.pt")
    assert load(weights=str(tmp_path / "weights.pt")).fingerprint == default_package.fingerprint


def test_other_names_are_refused_in_any_order(default_package, tmp_path):
    # Two layers of one shape may have changed places: only names tell.
    state = default_package.network.model.state_dict()
    torch.save({f"layer{n}": tensor for n, tensor in enumerate(state.values())}, tmp_path / "weights.pt")
    assert "are not this network's" in refusal(weights=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (
            lambda tensors: tensors["conv_stem.weight"][0].fill_(float("nan")),
            r"not finite: conv_stem\.weight",
        ),
        (lambda tensors: tensors["classifier.bias"][0].fill_(float("inf")), r"not finite: classifier\.bias"),
        (lambda tensors: tensors["classifier.weight"].zero_(), "are zero"),
        (
            lambda tensors: tensors.pop("bn1.weight"),
            r"1 tensors differ, for example bn1\.weight is nothing and .* \(32,\)",
        ),
        (lambda tensors: tensors.update(extra=torch.zeros(3)), r"extra .* \(3,\) .* nothing"),
    ],
)
def test_damaged_weights_are_refused(spoil, state, reason):
    assert re.search(reason, refusal(spoil(state)))


@pytest.mark.parametrize(
    "description",
    [
        lambda described: described.clear(),
        lambda described: described.pop("preprocessing"),
        lambda described: described.pop("class_names"),
        lambda described: described.update(class_names=[]),
        lambda described: described.update(class_names=["cat", "dog"]),
        lambda described: described.update(class_names=["cat", "dog", "bird", "fish"]),
        lambda described: described.update(class_ids=["n1"]),
        lambda described: described.update(network="resnet5000"),
        lambda described: described.update(scoring="argmax"),
        lambda described: described.update(pooling="mean"),
        lambda described: described["preprocessing"].update(mean="gray"),
        lambda described: described["preprocessing"].update(mean=[0.5, 0.5]),
        lambda described: described["preprocessing"].update(std=[0.5, 0.5, 0]),
        lambda described: described["preprocessing"].update(input_size=32),
        lambda described: described["preprocessing"].update(input_size=-1),
    ],
    ids=[
        *("empty", "no preprocessing", "no names", "zero names", "two names", "four names", "one id"),
        *("network", "scoring", "pooling", "mean is text", "two means", "std is zero", "small", "negative"),
    ],
)
def test_damaged_descriptions_are_refused(spoil, description):
    refusal(spoil(description=description))


def test_a_broken_description_is_refused(spoil, tmp_path):
    folder = spoil()
    for text in ("{", "", "[1]", "null", "\udcff"):
        (tmp_path / "network.json").write_bytes(text.encode(errors="surrogateescape"))
        assert "network.json" in refusal(folder)


def test_another_class_count_gives_both_counts(saved):
    assert re.search(
        r"classifier\.weight .*\(3, 1280\).*\(1000, 1280\)", refusal(weights=f"{saved}/weights.safetensors")
    )


def test_unknown_network():
    assert DEFAULT in refusal("resnet5000")
    assert DEFAULT in refusal("/no/such/folder")


def test_weights_given_with_a_package_are_used(saved, tmp_path):
    # The caller believes that these weights ran.
    assert "missing.pt" in refusal(str(saved), weights=str(tmp_path / "missing.pt"))


def test_a_package_of_a_network_trained_elsewhere(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict()
    about = {"data": "three pets", "epochs": 7, "größe": [1.5, None]}
    classes = Classes(("cat", "dog", "bird"))
    package = build_package(
        "torchvision:shufflenet_v2_x0_5", state, classes, scoring="sigmoid", provenance=about
    )
    assert package.preprocessing == Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save(package, tmp_path)
    again = load(str(tmp_path))
    assert again.provenance == package.provenance == about
    assert again.fingerprint == package.fingerprint
    assert (again.name, again.scoring, again.classes) == (package.name, "sigmoid", classes)
    for key, tensor in state.items():
        assert torch.equal(again.network.model.state_dict()[key], tensor)


def test_building_a_package_of_another_class_count_gives_both_counts():
    state = torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict()
    with pytest.raises(
        NetworkError, match=r"2 tensors differ, for example fc\.weight is \(3, 1024\) and .* \(2, 1024\)"
    ):
        build_package("torchvision:shufflenet_v2_x0_5", state, Classes(("cat", "dog")))


def test_provenance_may_be_left_out(spoil):
    assert load(spoil(description=lambda described: described.pop("provenance"))).provenance == {}


def test_output_stride_of_a_package(saved):
    assert check_gap_head(load(str(saved)).network, 224) == (7, 7)
    finer = load(str(saved), output_stride=16)
    assert check_gap_head(finer.network, 224) == (14, 14)
    assert finer.fingerprint == load(str(saved)).fingerprint


def test_output_stride_without_dilation_is_refused(tmp_path):
    network = create_network("torchvision:swin_t", classes=2)  # its strides are in linear layers
    package = NetworkPackage(
        "torchvision:swin_t", network, Classes(("cat", "dog")), Preprocessing(224, HALF, HALF), "softmax", ""
    )
    save(package, tmp_path)
    with pytest.raises(NetworkError, match=r"map of 7 rows with output stride 16 .*cannot be dilated"):
        load(str(tmp_path), output_stride=16)


def test_the_default_network_has_a_foreground_head(default_package, tmp_path):
    foreground = default_package.foreground
    assert foreground.weights == default_package.fingerprint
    assert foreground.taps == default_package.network.taps
    assert (foreground.head.fine_C.shape, foreground.head.deep_C.shape) == ((40,), (112,))
    # Another processor may differ in the last bits.
    np.testing.assert_allclose(fit_head(foreground.sums).fine_C, foreground.head.fine_C, rtol=1e-9)
    assert effective_classes(foreground.sums.class_counts.values()) > MANY_CLASSES
    assert load(output_stride=16).foreground.head.fingerprint == foreground.head.fingerprint


def test_a_foreground_head_is_part_of_a_package(default_package, tmp_path):
    save(default_package, tmp_path / "p")
    again = load(str(tmp_path / "p")).foreground
    assert again.to_bytes() == default_package.foreground.to_bytes()
    assert again.head.fingerprint == default_package.foreground.head.fingerprint


def test_other_weights_do_not_get_the_head(saved):
    assert load(str(saved)).foreground is None


def test_a_head_belongs_to_the_weights_next_to_it(default_package, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "p")
    write_foreground(
        default_package.foreground, str(tmp_path / "p" / "foreground.safetensors"), replace=False
    )
    assert load(str(tmp_path / "p")).foreground is not None
    shutil.copy(saved / "weights.safetensors", tmp_path / "others.safetensors")
    assert load(str(tmp_path / "p"), str(tmp_path / "others.safetensors")).foreground is None


def test_a_damaged_foreground_head_is_refused(spoil, tmp_path):
    folder = spoil()
    (tmp_path / "foreground.safetensors").write_bytes(b"no head")
    assert "foreground.safetensors is not a foreground head" in refusal(folder)


def test_a_foreground_head_of_other_taps_is_refused(default_package, spoil, tmp_path):
    folder = spoil()
    foreground = default_package.foreground
    taps = replace(foreground.taps, fine=replace(foreground.taps.fine, node="model.blocks.1.0.add"))
    (tmp_path / "foreground.safetensors").write_bytes(replace(foreground, taps=taps).to_bytes())
    message = refusal(folder)
    assert "the foreground head reads model.blocks.1.0.add (40 channels, stride 8)" in message
    assert "efficientnet_lite0 has model.blocks.2.1.add (40 channels, stride 8)" in message


def test_a_backbone_may_be_that_of_a_package(saved):
    torch.manual_seed(3)
    network = build_for_training(DEFAULT, 7, backbone_weights=str(saved))
    original = load(str(saved)).network.model.state_dict()
    for key, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, original[key]) != key.startswith("classifier"), key
