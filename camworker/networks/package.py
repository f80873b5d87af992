"""Network packages: a network with its weights, class names and preprocessing; loading, checking, saving.

A package is a folder, local or s3://, of two files: network.json and weights.safetensors.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from camworker.classes import Classes
from camworker.errors import CommitError, NetworkError
from camworker.networks.gap import GapNetwork, Preprocessing, check_gap_head
from camworker.networks.registry import DEFAULT, create_network, default_pooling
from camworker.networks.state_dicts import (
    PUBLISHED,
    State,
    load_all,
    load_backbone,
    published_state,
    read_state,
)
from camworker.schemas import POOLINGS, SCORINGS, Pooling, Scoring
from camworker.storage.uris import exists_uri, join_uri, open_store, read_uri

_DESCRIPTION: Final = "network.json"
_WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True)
class NetworkPackage:
    """A network that passed the check, and all that decides what it makes of an image.

    fingerprint: SHA-256 of the weights' content. provenance: where they are from, for people.
    map_size: (h, w) that the check found at the preprocessing's input size; None: it is still to be made.
    """

    name: str
    network: GapNetwork
    classes: Classes
    preprocessing: Preprocessing
    scoring: Scoring
    fingerprint: str
    provenance: dict[str, Any] = field(default_factory=dict)
    map_size: tuple[int, int] | None = None

    def map_at(self, input_size: int) -> tuple[int, int]:
        """(h, w) of a map at this input size. Raises NetworkError where the check refuses the network."""
        if self.map_size is not None and input_size == self.preprocessing.input_size:
            return self.map_size
        return check_gap_head(self.network, input_size)


def load(
    network: str | None = None, weights: str | None = None, *, output_stride: int | None = None
) -> NetworkPackage:
    """Load a network by name or from a package's folder.

    weights: a package's folder, which then says what the network is; or a file of weights for the
    network named, with ImageNet's 1000 classes; or "DEFAULT" for the weights that its library
    publishes. output_stride: as in networks.build. Raises NetworkError with the reason when anything
    does not fit.
    """
    if weights is not None and _is_package(weights):
        package = _load_package(weights, join_uri(weights, _WEIGHTS), output_stride)
        if network not in (None, package.name):
            raise NetworkError(
                f"{weights} is a package of {package.name}, not of {network}", parameter="network"
            )
        return package
    network = network or DEFAULT
    if _is_package(network):
        return _load_package(network, weights or join_uri(network, _WEIGHTS), output_stride)
    built = create_network(
        network, classes=1000, pooling=default_pooling(network), output_stride=output_stride
    )
    if weights is None and network != DEFAULT:
        raise NetworkError(
            f"{network} needs weights: --weights FILE, a network package, or {PUBLISHED} to download "
            "those that its library publishes"
        )
    state = published_state(network) if weights in (None, PUBLISHED) else read_state(str(weights))
    return _filled(network, built, state, imagenet(), built.preprocessing, "softmax", {}, output_stride)


def load_planned(
    network: str | None, weights: str | None, output_stride: int | None, fingerprint: str
) -> NetworkPackage:
    """Load the network that a run was planned with; see `load`.

    Raises:
        CommitError: If the weights have another fingerprint: they were replaced since.
    """
    package = load(network, weights, output_stride=output_stride)
    if package.fingerprint != fingerprint:
        raise CommitError("the network's weights have changed since this run was planned")
    return package


def build_package(
    name: str,
    state: State,
    classes: Classes,
    *,
    pooling: Pooling | None = None,
    preprocessing: Preprocessing | None = None,
    scoring: Scoring = "softmax",
    provenance: dict[str, Any] | None = None,
) -> NetworkPackage:
    """A package of a network trained elsewhere: the network's name, its state dict and its classes.

    pooling, preprocessing: default the network's own. Raises NetworkError when anything does not fit.
    """
    network = create_network(name, classes=len(classes), pooling=pooling or default_pooling(name))
    preprocessing = preprocessing or network.preprocessing
    return _filled(name, network, state, classes, preprocessing, scoring, provenance or {}, None)


def build_for_training(
    name: str, classes: int, *, pooling: Pooling | None = None, backbone_weights: str | None = None
) -> GapNetwork:
    """A network to be trained: the head at random, the backbone from weights.

    backbone_weights: "DEFAULT" for the published ones, a file, or None for random ones. Raises
    NetworkError when they do not fit, and when the network's head is none.
    """
    network = create_network(name, classes=classes, pooling=pooling or default_pooling(name))
    if network.classifier is not None:
        # Small, so that the first steps do not shake the backbone: libraries initialise for 1000 classes.
        torch.nn.init.normal_(network.classifier.weight, std=0.01)
        if network.classifier.bias is not None:
            torch.nn.init.zeros_(network.classifier.bias)
    if backbone_weights is not None:
        known = backbone_weights == PUBLISHED
        load_backbone(network, published_state(name) if known else read_state(backbone_weights))
    return network


def save(package: NetworkPackage, folder: str | Path) -> None:
    """Write a package to a folder, local or s3://. Raises NetworkError where there is one already."""
    store = open_store(str(folder))
    state = {key: tensor.contiguous() for key, tensor in package.network.model.state_dict().items()}
    description = {
        "network": package.name,
        "class_names": package.classes.names,
        "class_ids": package.classes.ids,
        "preprocessing": asdict(package.preprocessing),
        "pooling": package.network.pooling,
        "scoring": package.scoring,
        "provenance": package.provenance,
    }
    # The description last: a folder without it is no package.
    if store.exists(_DESCRIPTION) or not store.create(_WEIGHTS, safetensors.torch.save(state)):
        raise NetworkError(f"{folder} holds weights already: name another folder")
    store.create(_DESCRIPTION, json.dumps(description, indent=1).encode())


def imagenet() -> Classes:
    """The 1000 ILSVRC classes: torchvision's short names, which are distinct, and WordNet ids."""
    from timm.data import ImageNetInfo
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return Classes(tuple(names), tuple(ImageNetInfo("imagenet-1k").label_names()))


def _is_package(folder: str) -> bool:
    try:
        return exists_uri(join_uri(folder, _DESCRIPTION))
    except OSError as error:
        raise NetworkError(f"{folder} cannot be read: {error}") from error


def _load_package(folder: str, weights: str, output_stride: int | None) -> NetworkPackage:
    where = join_uri(folder, _DESCRIPTION)
    try:
        described: dict[str, Any] = json.loads(read_uri(where))
        given = described["preprocessing"]
        preprocessing = Preprocessing(
            int(given["input_size"]),
            tuple(map(float, given["mean"])),  # type: ignore[arg-type]
            tuple(map(float, given["std"])),  # type: ignore[arg-type]
        )
        class_names, ids = described["class_names"], described.get("class_ids")
        if not isinstance(class_names, list):
            raise TypeError("class_names is a list")
        classes = Classes(tuple(map(str, class_names)), tuple(ids) if ids else None)
        name, scoring, pooling = (str(described[key]) for key in ("network", "scoring", "pooling"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise NetworkError(f"{where} does not describe a network: {error!r}") from error
    if scoring not in SCORINGS or pooling not in POOLINGS:
        raise NetworkError(f"{where}: scoring is softmax or sigmoid and pooling avg or max")
    network = create_network(name, classes=len(classes), pooling=pooling, output_stride=output_stride)  # type: ignore[arg-type]
    return _filled(
        name,
        network,
        read_state(weights),
        classes,
        preprocessing,
        scoring,
        dict(described.get("provenance") or {}),
        output_stride,
    )


def _filled(
    name: str,
    network: GapNetwork,
    state: State,
    classes: Classes,
    preprocessing: Preprocessing,
    scoring: Scoring,
    provenance: dict[str, Any],
    output_stride: int | None,
) -> NetworkPackage:
    load_all(network, state)
    map_size = check_gap_head(network, preprocessing.input_size)
    height, _ = map_size
    if output_stride is not None and height < preprocessing.input_size // output_stride:
        raise NetworkError(
            f"{name} has a map of {height} rows with --output-stride {output_stride} at input size "
            f"{preprocessing.input_size}: it was not dilated, leave the option out"
        )
    fingerprint = _fingerprint(network)
    return NetworkPackage(name, network, classes, preprocessing, scoring, fingerprint, provenance, map_size)


def _fingerprint(network: GapNetwork) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors: of the content, not of the file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
