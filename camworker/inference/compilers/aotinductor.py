"""Compile networks for a GPU, ahead of time, with torch's AOTInductor."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def compile_for_cuda(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """Compile a network into a file, see `camworker.inference.compile.compile_features`.

    This needs a C++ compiler.
    """
    import torch._inductor  # Importing it takes seconds, and only compiling needs it.

    exported = torch.export.export(network, (pixels_BCHW,))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(file))


def load_for_cuda(file: Path, streams: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Load a compiled network, see `camworker.inference.compile.load_compiled_features`.

    The file contains machine code: anyone who can write its folder can run code in this process.
    """
    from torch._inductor.package import load_package  # type: ignore[attr-defined]  # torch has no stub for it

    compiled: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = load_package(
        str(file), num_runners=streams
    )
    # torch unpacks the file into a temporary folder, which a worker that is killed would leave behind. Once
    # loaded, the code needs the folder no more.
    for folder in _unpacked():
        shutil.rmtree(folder, ignore_errors=True)
    return compiled


def _unpacked() -> set[Path]:
    """Return torch's temporary folders from which this process has loaded code; none outside of Linux."""
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
