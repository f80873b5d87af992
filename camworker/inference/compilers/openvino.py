"""Compile networks for a CPU with OpenVINO, which chooses layouts and fuses layers for the processor.

A compiled network runs without holding Python's lock, so that decoding goes on in other threads. No C++
compiler is needed.
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
    """A network whose input is rows of RGB triples, as pixels lie in memory."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels_BHWC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: tuple[torch.Tensor, ...] = self._network(pixels_BHWC.permute(0, 3, 1, 2))
        return maps


def compile_for_cpu(file: Path, network: nn.Module, pixels_BCHW: torch.Tensor) -> None:
    """Compile a network into a file, see `camworker.inference.compile.compile_features`.

    The file is valid for any precision and number of threads.
    """
    openvino = _openvino()
    exported = torch.export.export(_FromRows(network).eval(), (_rows(pixels_BCHW),))
    model = openvino.convert_model(exported)
    file.write_bytes(_core().compile_model(model, "CPU").export_model().getvalue())


def load_for_cpu(
    file: Path, dtype: torch.dtype, streams: int
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Load a compiled network, see `camworker.inference.compile.load_compiled_features`.

    Each stream uses as many threads as torch.

    Raises:
        ValueError: The processor cannot compute in this type.
    """
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads() * streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # All workers of a node would be pinned to the same cores.
    }
    compiled = _core().import_model(file.read_bytes(), "CPU", options)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if hint != _PRECISIONS[dtype]:
        raise ValueError(f"compiled for this processor it would compute in {hint}")
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())

    outputs = range(len(compiled.outputs))

    def run(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        request = requests.get()
        try:
            request.infer([_rows(pixels_BCHW).numpy()], share_inputs=True)
            # Copies, because the next call of this request overwrites its outputs.
            return tuple(torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in outputs)
        finally:
            requests.put(request)

    return run


def _rows(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    return pixels_BCHW.permute(0, 2, 3, 1).contiguous()


@cache
def _core() -> Any:
    """Return OpenVINO's Core of this process: created on first use, never replaced and never destroyed.

    This is the one piece of process-wide state in camworker, because OpenVINO allows no second Core. When a
    Core first uses the processor it gives the thread an alternate signal stack, and restores the previous
    one when it is destroyed. If two of them overlap, the later one restores the stack of the earlier one,
    which is no longer mapped, and the next signal that has a handler ends the process without a message.
    """
    return _openvino().Core()


def _openvino() -> Any:
    # openvino_telemetry phones home on import and on every conversion; block it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None blocks the import
    import openvino

    return openvino
