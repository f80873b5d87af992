"""Compiling for the processor: OpenVINO, which lays out and fuses a network as the processor wants it.

It runs without Python's lock, so that decoding goes on beside it, and needs no C++ compiler.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch import nn

_PRECISIONS: Final = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class _FromRows(nn.Module):
    """A network whose pixels are rows of RGB triples, as they lie in memory."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        return self._network(pixels_BHWC.permute(0, 3, 1, 2))


def compile_into(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """See compiling. What is written holds for any precision and number of threads."""
    openvino = _openvino()
    exported = torch.export.export(_FromRows(network).eval(), (_rows(pixels_BCHW),))
    model = openvino.convert_model(exported)
    file.write_bytes(_core().compile_model(model, "CPU").export_model().getvalue())


def load_compiled(file: Path, dtype: torch.dtype, streams: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """See compiling. Each stream has as many threads as torch. ValueError for a dtype that is not had."""
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads() * streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # the workers of a node would all take the same cores
    }
    compiled = _core().import_model(file.read_bytes(), "CPU", options)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if hint != _PRECISIONS[dtype]:
        raise ValueError(f"compiled for this processor it would compute in {hint}")
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())

    def run(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        request = requests.get()
        try:
            request.infer([_rows(pixels_BCHW).numpy()], share_inputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())  # the next one writes over it
        finally:
            requests.put(request)

    return run


def _rows(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    return pixels_BCHW.permute(0, 2, 3, 1).contiguous()


@cache
def _core() -> Any:
    """The one of this process, and it stays.

    With its first use of the processor a Core gives the thread another stack for signals, and takes it
    back when it goes. Of two that overlap, the later one then gives back that of the earlier one, which is
    no longer mapped: the next signal that has a handler ends the process without a word.
    """
    return _openvino().Core()


def _openvino() -> Any:
    # With this package it would tell its makers' server that it was imported, and what it converts.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
