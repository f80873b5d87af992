"""Compile networks: whether it is worthwhile, and which compiler a device needs."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import nn

from camworker.inference.compilers.aotinductor import compile_for_cuda, load_for_cuda
from camworker.inference.compilers.openvino import compile_for_cpu, load_for_cpu
from camworker.storage.atomic import write_then_rename

Compile = Literal["auto", "on", "off"]
COMPILE: Final[tuple[Compile, ...]] = get_args(Compile)
CompiledFeatures = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

# Seconds by device that compiling and loading take together (on two cores 1 to 9 s, by the network), and
# loading alone.
_COMPILE_SECONDS: Final = {"cpu": 7.0, "cuda": 40.0}
_LOAD_SECONDS: Final = {"cpu": 0.5, "cuda": 3.0}
# Share of the time per image that compiling saves. Measured on two cores: 0.6 (EfficientNet-Lite0), 0.3
# (ResNet-50), 0.1 (VGG-16).
_SAVED: Final = 0.25


def is_worthwhile(images: int, seconds_per_image: float, *, device: str, compiled: bool) -> bool:
    """Return whether a compiled network saves more time than compiling takes.

    Args:
        images: Number of images that the network will see.
        seconds_per_image: Time per image without compiling.
        device: "cpu" or "cuda".
        compiled: Whether the network was compiled before and is only loaded.
    """
    cost = _LOAD_SECONDS if compiled else _COMPILE_SECONDS
    return images * seconds_per_image * _SAVED > cost[device]


def compiler(device: str) -> str:
    """Return name and version of the compiler for a device; what it writes depends on both."""
    if device == "cuda":
        return f"torch {torch.__version__}"
    try:
        return f"openvino {version('openvino')}"
    except PackageNotFoundError:
        return "none"


def compile_features(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """Compile a network for inference on batches of exactly one shape.

    Args:
        file: Where the compiled network is written, completely or not at all.
        network: Takes one tensor and returns a tuple of one or several. For the CPU it has to be in float32,
            whatever precision it will compute in.
        pixels_BCHW: An example of its input, on the device to compile for.

    Raises:
        Exception: Any error of a compiler that cannot trace or compile the network.
    """
    compile_for_device = compile_for_cpu if pixels_BCHW.device.type == "cpu" else compile_for_cuda
    with torch.no_grad(), write_then_rename(file, suffix=".draft.pt2") as draft:
        compile_for_device(draft, network, pixels_BCHW)


def load_compiled_features(file: Path, *, device: str, dtype: torch.dtype, streams: int) -> CompiledFeatures:
    """Load what `compile_features` wrote.

    Args:
        file: The compiled network.
        device: "cpu" or "cuda".
        dtype: The type to compute in.
        streams: Number of threads that may run it at a time.

    Raises:
        ValueError: The device cannot compute in this type.
    """
    if device == "cpu":
        return load_for_cpu(file, dtype, streams)
    return load_for_cuda(file, streams)
