"""Compiling a network ahead of time into a file that any process of this node loads; whether it repays."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import nn

Compile = Literal["auto", "on", "off"]
COMPILE: Final[tuple[Compile, ...]] = get_args(Compile)
Compiled = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_COMPILE_SECONDS: Final = 30.0
_LOAD_SECONDS: Final = 3.0
_SAVED: Final = 0.25  # of what an image takes; measured: 0.3 to 0.5 (EfficientNet-Lite0), 0.38 (ResNet-50)


def repays(images: int, seconds_each: float, *, compiled: bool) -> bool:
    """Whether compiling saves more on so many images than it takes.

    seconds_each: what an image takes as things are. compiled: it was done before, and is only loaded.
    """
    return images * seconds_each * _SAVED > (_LOAD_SECONDS if compiled else _COMPILE_SECONDS)


def compile_into(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """Compile network for batches of exactly this shape, for inference alone, and write it to file.

    On the processor its weights are frozen into it: folded, and laid out as the processor wants them. It
    keeps the number of threads that torch has now. Raises whatever torch does where it cannot trace or
    compile the network, or where there is no C++ compiler.
    """
    import torch._inductor  # seconds, and needed by nobody who compiles nothing

    options = {"freezing": pixels_BCHW.device.type == "cpu"}
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=file.parent) as folder:
        exported = torch.export.export(network, (pixels_BCHW,))
        draft = Path(folder) / "draft.pt2"
        torch._inductor.aoti_compile_and_package(exported, package_path=str(draft), inductor_configs=options)
        os.replace(draft, file)  # whole or not there at all


def load_compiled(file: Path, streams: int) -> Compiled:
    """What compile_into wrote; so many threads can run it at a time. It is code: trust the file's folder."""
    from torch._inductor.package import load_package

    compiled = load_package(str(file), num_runners=streams)
    # torch unpacks it into a temporary folder, which a worker that is killed would leave behind. What is
    # loaded needs it no more.
    for folder in _unpacked():
        shutil.rmtree(folder, ignore_errors=True)
    return compiled


def _unpacked() -> set[Path]:
    """The temporary folders of torch from which this process has loaded code, where Linux tells."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if "/aotinductor_" in line}
    temporary = Path(tempfile.gettempdir())
    return {
        folder
        for path in loaded
        for folder in path.parents
        if folder.parent == temporary and folder.name.startswith("aotinductor_")
    }
