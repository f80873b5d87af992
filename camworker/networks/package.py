"""Network packages: networks with their weights, class names and preprocessing.

A saved package is a folder, local or s3://, with the files network.json and weights.safetensors, and with
foreground.safetensors if it has a foreground head.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from camworker.classes import Classes
from camworker.errors import CommitError, NetworkError
from camworker.networks.foreground_file import (
    FOREGROUND_FILE,
    FittedForeground,
    published_foreground,
    read_foreground,
)
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.networks.gap_check import check_gap_head
from camworker.networks.registry import DEFAULT, create_network, default_pooling, imagenet
from camworker.networks.state_dicts import (
    PUBLISHED,
    State,
    fingerprint_of,
    load_all,
    load_backbone,
    published_state,
    read_state,
)
from camworker.schemas import POOLINGS, SCORINGS, Pooling, Scoring
from camworker.storage.uris import Connections, exists_uri, join_uri, open_store, read_uri

_DESCRIPTION: Final = "network.json"
_WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True)
class NetworkPackage:
    """A network that passed `check_gap_head`, with everything that decides its output for an image.

    Attributes:
        name: Name of the architecture, see `create_network`.
        network: The network.
        classes: Its classes.
        preprocessing: The input that it expects.
        scoring: How its logits become scores.
        fingerprint: SHA-256 of the content of its weights, as hex digits.
        provenance: Where the weights come from, for people; JSON.
        map_size: Height and width of its map at the input size of the preprocessing, in cells; None if the
            check has not been run.
        foreground: Its foreground head, whose numbers are not part of the fingerprint; None if it has none.
    """

    name: str
    network: GapNetwork
    classes: Classes
    preprocessing: Preprocessing
    scoring: Scoring
    fingerprint: str
    provenance: Mapping[str, object] = field(default_factory=dict)
    map_size: tuple[int, int] | None = None
    foreground: FittedForeground | None = None

    def map_at(self, input_size: int) -> tuple[int, int]:
        """Return height and width of the map at an input size, in cells.

        Raises:
            NetworkError: The network fails `check_gap_head` at this input size.
        """
        if self.map_size is not None and input_size == self.preprocessing.input_size:
            return self.map_size
        return check_gap_head(self.network, input_size)


def load(
    network: str | None = None,
    weights: str | None = None,
    *,
    output_stride: int | None = None,
    fingerprint: str | None = None,
) -> NetworkPackage:
    """Load a network by its name or from a package's folder.

    Args:
        network: Name of an architecture, or folder of a package. Default: that of `weights` if it is a
            package, else EfficientNet-Lite0.
        weights: Folder of a package, which then defines the network; or a file of weights for the named
            architecture, with the 1000 classes of ImageNet; or "DEFAULT" for the weights that its library
            publishes.
        output_stride: Input pixels per cell of the feature map, see `create_network`.
        fingerprint: The expected fingerprint of the weights.

    Raises:
        NetworkError: The network or its weights do not exist, do not fit, or fail `check_gap_head`.
        CommitError: The weights have another fingerprint than expected.
    """
    package = _load(network, weights, output_stride)
    if fingerprint is not None and package.fingerprint != fingerprint:
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
    provenance: Mapping[str, object] | None = None,
) -> NetworkPackage:
    """Return a package of a network that was trained elsewhere.

    Args:
        name: Name of the architecture, see `create_network`.
        state: The state dict.
        classes: The classes, in the order of the logits.
        pooling: The pooling that it was trained with. Default: that of the architecture.
        preprocessing: The input that it was trained with. Default: that of the architecture's published
            weights.
        scoring: How logits become scores.
        provenance: Where the weights come from, for people; JSON.

    Raises:
        NetworkError: The weights do not fit, or the network fails `check_gap_head`.
    """
    network = create_network(name, classes=len(classes), pooling=pooling or default_pooling(name))
    preprocessing = preprocessing or network.preprocessing
    return _filled(name, network, state, classes, preprocessing, scoring, provenance or {}, None)


def build_for_training(
    name: str, classes: int, *, pooling: Pooling | None = None, backbone_weights: str | None = None
) -> GapNetwork:
    """Return a network to be trained, with a random head.

    Args:
        name: Name of the architecture, see `create_network`.
        classes: Number of classes.
        pooling: Default: that of the architecture.
        backbone_weights: "DEFAULT" for the published weights of the backbone, a file of weights, or None
            for random ones. The folder of a package stands for its file.

    Raises:
        NetworkError: The weights of the backbone do not fit.
    """
    network = create_network(name, classes=classes, pooling=pooling or default_pooling(name))
    if network.classifier is not None:
        # Libraries initialize for 1000 classes. Smaller weights keep the first steps from distorting the
        # backbone.
        torch.nn.init.normal_(network.classifier.weight, std=0.01)
        if network.classifier.bias is not None:
            torch.nn.init.zeros_(network.classifier.bias)
    if backbone_weights is not None:
        if is_package(backbone_weights):
            backbone_weights = join_uri(backbone_weights, _WEIGHTS)
        published = backbone_weights == PUBLISHED
        load_backbone(network, published_state(name) if published else read_state(backbone_weights))
    return network


def save(package: NetworkPackage, folder: str | Path) -> None:
    """Write a package to a folder, local or s3://.

    Raises:
        NetworkError: The folder holds a package already.
    """
    store = open_store(str(folder))
    state = {key: tensor.contiguous() for key, tensor in package.network.model.state_dict().items()}
    description = {
        "network": package.name,
        "class_names": package.classes.names,
        "class_ids": package.classes.ids,
        "preprocessing": asdict(package.preprocessing),
        "pooling": package.network.pooling,
        "scoring": package.scoring,
        "provenance": dict(package.provenance),
    }
    # The description is written last: a folder without it is not a package.
    if store.exists(_DESCRIPTION) or not store.create(_WEIGHTS, safetensors.torch.save(state)):
        raise NetworkError(f"{folder} holds weights already: name another folder")
    if package.foreground is not None:
        store.create(FOREGROUND_FILE, package.foreground.to_bytes())
    store.create(_DESCRIPTION, json.dumps(description, indent=1).encode())


def with_foreground(package: NetworkPackage, foreground: FittedForeground, source: str) -> NetworkPackage:
    """Return a package with a foreground head.

    Args:
        package: The package.
        foreground: The head.
        source: Where the head comes from, for messages.

    Raises:
        NetworkError: The head reads other feature maps than the network has.
    """
    foreground.check_fits(package.network.taps, package.name, source)
    return replace(package, foreground=foreground)


def _load(network: str | None, weights: str | None, output_stride: int | None) -> NetworkPackage:
    connections = Connections()
    if weights is not None and is_package(weights, connections):
        package = _load_package(weights, join_uri(weights, _WEIGHTS), output_stride, connections)
        if network not in (None, package.name):
            raise NetworkError(
                f"{weights} is a package of {package.name}, not of {network}", parameter="network"
            )
        return package
    network = network or DEFAULT
    if is_package(network, connections):
        return _load_package(network, weights or join_uri(network, _WEIGHTS), output_stride, connections)
    built = create_network(
        network, classes=1000, pooling=default_pooling(network), output_stride=output_stride
    )
    if weights is None and network != DEFAULT:
        raise NetworkError(
            f"{network} needs weights: a file, a network package, or {PUBLISHED} to download those that its "
            "library publishes",
            parameter="weights",
        )
    state = (
        published_state(network) if weights in (None, PUBLISHED) else read_state(str(weights), connections)
    )
    return _filled(network, built, state, imagenet(), built.preprocessing, "softmax", {}, output_stride)


def is_package(folder: str, connections: Connections | None = None) -> bool:
    """Return whether a folder, local or s3://, is a network package.

    Raises:
        NetworkError: It cannot be read.
    """
    return _exists(join_uri(folder, _DESCRIPTION), connections)


def _exists(file: str, connections: Connections | None) -> bool:
    try:
        return exists_uri(file, connections=connections)
    except OSError as error:
        raise NetworkError(f"{file} cannot be read: {error}") from error


def _load_package(
    folder: str, weights: str, output_stride: int | None, connections: Connections
) -> NetworkPackage:
    uri = join_uri(folder, _DESCRIPTION)
    try:
        # `Any`, because the content is checked by what fails here.
        description: dict[str, Any] = json.loads(read_uri(uri, connections=connections))
        settings = description["preprocessing"]
        preprocessing = Preprocessing(
            int(settings["input_size"]), _channels(settings["mean"]), _channels(settings["std"])
        )
        class_names, ids = description["class_names"], description.get("class_ids")
        if not isinstance(class_names, list):
            raise TypeError("class_names is a list")
        classes = Classes(tuple(map(str, class_names)), tuple(ids) if ids else None)
        name, scoring, pooling = (str(description[key]) for key in ("network", "scoring", "pooling"))
        provenance = dict(description.get("provenance") or {})
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise NetworkError(f"{uri} does not describe a network: {error!r}") from error
    if scoring not in SCORINGS or pooling not in POOLINGS:
        raise NetworkError(f"{uri}: scoring is softmax or sigmoid and pooling avg or max")
    network = create_network(name, classes=len(classes), pooling=pooling, output_stride=output_stride)
    state = read_state(weights, connections)
    package = _filled(name, network, state, classes, preprocessing, scoring, provenance, output_stride)
    file = join_uri(folder, FOREGROUND_FILE)
    # A head goes with the weights next to it.
    if weights != join_uri(folder, _WEIGHTS) or not _exists(file, connections):
        return package
    return with_foreground(package, read_foreground(file, connections), file)


def _channels(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _filled(
    name: str,
    network: GapNetwork,
    state: State,
    classes: Classes,
    preprocessing: Preprocessing,
    scoring: Scoring,
    provenance: Mapping[str, object],
    output_stride: int | None,
) -> NetworkPackage:
    load_all(network, state)
    map_size = check_gap_head(network, preprocessing.input_size)
    height, _ = map_size
    if output_stride is not None and height < preprocessing.input_size // output_stride:
        raise NetworkError(
            f"{name} has a map of {height} rows with output stride {output_stride} at input size "
            f"{preprocessing.input_size}: it cannot be dilated",
            parameter="output_stride",
        )
    package = NetworkPackage(
        name, network, classes, preprocessing, scoring, fingerprint_of(network), provenance, map_size
    )
    if name == DEFAULT and (published := published_foreground()).weights == package.fingerprint:
        return with_foreground(package, published, f"the head of {name}")
    return package
