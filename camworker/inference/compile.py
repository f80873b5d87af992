"""Whether compiling a network repays, and which compiler does it: compiling_cpu or compiling_cuda."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import nn

from camworker.inference import compile_aotinductor as compiling_cuda
from camworker.inference import compile_openvino as compiling_cpu
from camworker.storage.atomic import write_then_rename

Compile = Literal["auto", "on", "off"]
COMPILE: Final[tuple[Compile, ...]] = get_args(Compile)
Compiled = Callable[[torch.Tensor], torch.Tensor]

# By device: what compiling takes, loading included (on two cores 1 to 9 s, by the network), and loading.
_COMPILE_SECONDS: Final = {"cpu": 7.0, "cuda": 40.0}
_LOAD_SECONDS: Final = {"cpu": 0.5, "cuda": 3.0}
# Of what an image takes; measured on two cores: 0.6 (EfficientNet-Lite0), 0.3 (ResNet-50), 0.1 (VGG-16).
_SAVED: Final = 0.25


def is_worthwhile(images: int, seconds_per_image: float, *, device: str, compiled: bool) -> bool:
    """Whether compiling saves more on so many images than it takes.

    seconds_per_image: what an image takes as things are. compiled: it was done before, and is only loaded.
    """
    takes = _LOAD_SECONDS if compiled else _COMPILE_SECONDS
    return images * seconds_per_image * _SAVED > takes[device]


def compiler(device: str) -> str:
    """Name and version of what compiles for device, on which depends what it writes."""
    if device == "cuda":
        return f"torch {torch.__version__}"
    try:
        return f"openvino {version('openvino')}"
    except PackageNotFoundError:
        return "none"


def compile_into(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """Compile network for batches of exactly this shape, for inference alone, and write it to file.

    network: pixels -> features, one tensor each; on the processor in float32, whatever it will compute in.
    Raises whatever a compiler does where it cannot trace or compile the network.
    """
    compiler = compiling_cpu if pixels_BCHW.device.type == "cpu" else compiling_cuda
    with torch.no_grad(), write_then_rename(file, suffix=".draft.pt2") as draft:
        compiler.compile_into(draft, network, pixels_BCHW)


def load_compiled(file: Path, *, device: str, dtype: torch.dtype, streams: int) -> Compiled:
    """What compile_into wrote, to compute in dtype; so many threads can run it at a time."""
    if device == "cpu":
        return compiling_cpu.load_compiled(file, dtype, streams)
    return compiling_cuda.load_compiled(file, streams)
