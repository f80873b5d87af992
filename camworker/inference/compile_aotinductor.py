"""Compiling for a GPU: torch's AOTInductor, ahead of time."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def compile_into(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """See compiling. It needs a C++ compiler."""
    import torch._inductor  # seconds, and needed by nobody who compiles nothing

    exported = torch.export.export(network, (pixels_BCHW,))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(file))


def load_compiled(file: Path, streams: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """See compiling. It is code: trust the file's folder."""
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
