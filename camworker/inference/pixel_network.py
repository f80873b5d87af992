"""`PixelNetwork`: a network that takes uint8 pixels, and that can be compiled."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import fx, nn

from camworker.errors import NetworkError, UsageError
from camworker.inference.compile import CompiledFeatures, compile_features, load_compiled_features
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.networks.mixed_precision import lower_precision
from camworker.networks.taps import with_taps
from camworker.networks.traced_features import TracedFeatures
from camworker.schemas import PRECISIONS, Precision

# Root mean square, in standard deviations of what is compared. On noise, correct bfloat16 graphs differ by
# about 0.1 (rounding order); a wrong graph differs by about 1.
_TOLERANCE: Final = 0.3
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type in which a network computes on a device.

    "auto" is bfloat16 where the device computes in it, else float16 on a GPU and float32 on a CPU.

    Raises:
        UsageError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}", parameter="precision"
        )
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """What a network computes for B images, float32.

    Attributes:
        features_BCHW: The input of the global pooling.
        logits_BK: The logits.
        fine_BCHW: The map at stride 8, see `GapNetwork.tapped_features`; None without taps.
        deep_BCHW: The map at stride 16; None without taps, or if the network has no such map.
    """

    features_BCHW: torch.Tensor
    logits_BK: torch.Tensor
    fine_BCHW: torch.Tensor | None
    deep_BCHW: torch.Tensor | None


class PixelNetwork(nn.Module):
    """A copy of a network with its preprocessing: uint8 pixels to features and logits, both float32.

    Only the features are computed in `dtype`: the head is a product of small matrices, which is cheap in
    float32. With taps everything up to the fine map is in float32 too, see `lower_precision`, except where
    OpenVINO computes in bfloat16. Normalization is part of the compiled graph, where it costs no extra pass
    over memory.

    Args:
        network: The network; it is not changed.
        preprocessing: The normalization that the network expects.
        device: The device to compute on.
        dtype: The type in which features are computed.
        batch_size: Number of images that the compiled network takes.
        input_size: Side S of the images, in pixels.
        taps: Whether the maps of earlier stages are computed as well, see `GapNetwork.taps`.

    Attributes:
        taps: The maps of earlier stages that are computed; None without.

    Raises:
        NetworkError: The network has no taps.
    """

    def __init__(
        self,
        network: GapNetwork,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        input_size: int,
        taps: bool = False,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self._original = (network, preprocessing)
        self.taps = network.taps if taps else None
        if taps and self.taps is None:
            raise NetworkError(f"the network has no maps to refine with: {network.no_taps_reason}")
        self.network = copy.deepcopy(network).to(device)
        self.network.to(memory_format=torch.channels_last)
        # Traced here and not in the first batch: tracing changes torch's modules for all threads of the
        # process while it lasts.
        self._tapped: fx.GraphModule | None = None
        if self.taps is not None:
            self._tapped = with_taps(TracedFeatures.of(self.network.features), self.taps)
        if self._tapped is None:
            self.network.to(dtype)
        elif dtype != torch.float32:
            lower_precision(self.network, dtype, self._tapped)
        if self.network.classifier is not None and network.classifier is not None:
            self.network.classifier.float()
            self.network.classifier.load_state_dict(network.classifier.state_dict())  # never rounded
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, 3, 1, 1) * 255)
        self._shape = (batch_size, 3, input_size, input_size)
        self._compiled: CompiledFeatures | None = None
        self.eval()

    def normalized(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the input of the wrapped network for uint8 pixels."""
        return self._scaled(pixels_BCHW).to(self.dtype)

    def forward(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the features of any number of images, then the maps of earlier stages; never compiled."""
        if self._tapped is None:
            return (self.network.features(self.normalized(pixels_BCHW)).float(),)
        return tuple(map_BCHW.float() for map_BCHW in self._tapped(self._scaled(pixels_BCHW)))

    def _scaled(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return (pixels_BCHW.float() - self.get_buffer("mean")) / self.get_buffer("std")

    def features_and_logits(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features, [B, C, h, w], and the logits, [B, K], of a batch, see `evaluate`."""
        output = self.evaluate(pixels_BCHW)
        return output.features_BCHW, output.logits_BK

    def evaluate(self, pixels_BCHW: torch.Tensor) -> NetworkOutput:
        """Return the features and the logits of a batch, and the maps of earlier stages.

        The compiled network is used if there is one, and for batches more than half full: it takes batches
        of one size, and filling up a smaller one costs more than it saves.

        Args:
            pixels_BCHW: uint8 [B, 3, S, S] on the device.
        """
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        size, count = self._shape[0], len(pixels_BCHW)
        if self._compiled is None or not size / 2 < count <= size:
            return self._output(self(pixels_BCHW))
        if count < size:
            filled_BCHW = pixels_BCHW.new_zeros(self._shape)
            filled_BCHW[:count] = pixels_BCHW
            pixels_BCHW = filled_BCHW.contiguous(memory_format=torch.channels_last)
        return self._output(tuple(map_BCHW[:count] for map_BCHW in self._compiled(pixels_BCHW)))

    def compile_into(self, file: Path, *, streams: int) -> str | None:
        """Compile the features, and the maps of earlier stages, into a file, or load what the file holds.

        Args:
            file: Where the compiled network is, or is to be written.
            streams: Number of threads that may call `evaluate` at a time.

        Returns:
            None, or the reason why the network could not be compiled; it still works, only slower.
        """
        pixels_BCHW, device = self._noise(), self._device.type
        # The many parts of a compiler raise nearly any error. Each means that this network cannot be
        # compiled.
        try:
            if not file.exists():
                compile_features(file, self.in_float32() if device == "cpu" else self, pixels_BCHW)
            compiled = load_compiled_features(file, device=device, dtype=self.dtype, streams=streams)
            with torch.inference_mode():
                features_BCHW, *tapped = compiled(pixels_BCHW)
                own_BCHW, *own_tapped = self(pixels_BCHW)
                if len(tapped) != len(own_tapped):
                    return f"it computes {1 + len(tapped)} maps, not {1 + len(own_tapped)}"
                pairs = [(self.network.logits(features_BCHW), self.network.logits(own_BCHW))]
                pairs += zip(tapped, own_tapped, strict=True)
                differences = [float((got - own).square().mean().sqrt() / own.std()) for got, own in pairs]
        except Exception as error:
            return _reason(error)
        names = ("logits", "map at stride 8", "map at stride 16")
        for name, difference in zip(names, differences, strict=False):
            if not difference <= _TOLERANCE:
                return f"its {name} would differ by {difference:.2g} of their standard deviation"
        self._compiled = compiled
        return None

    @torch.inference_mode()
    def seconds_per_image(self) -> float:
        """Measure how long an image of a batch takes on this machine, not compiled, in seconds.

        The CPU is measured with a small batch, in which an image takes as long as in a large one.
        """
        pixels_BCHW = self._noise()[: 4 if self._device.type == "cpu" else None]
        self(pixels_BCHW)[0].cpu()  # Warm-up: the first batch pays for initialization.
        started = time.perf_counter()
        self(pixels_BCHW)[0].cpu()
        return (time.perf_counter() - started) / len(pixels_BCHW)

    def _output(self, maps: tuple[torch.Tensor, ...]) -> NetworkOutput:
        features_BCHW, *tapped = maps
        fine_BCHW, deep_BCHW = (*tapped, None, None)[:2]
        return NetworkOutput(features_BCHW, self.network.logits(features_BCHW), fine_BCHW, deep_BCHW)

    def _noise(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        pixels_BCHW = torch.randint(256, self._shape, dtype=torch.uint8, generator=noise)
        return pixels_BCHW.to(self._device).contiguous(memory_format=torch.channels_last)

    @property
    def _device(self) -> torch.device:
        return self.get_buffer("mean").device

    def in_float32(self) -> "PixelNetwork":
        """Return a copy of the same network that computes in float32 and is not compiled."""
        size, _, side, _ = self._shape
        return PixelNetwork(
            *self._original,
            device=self._device,
            dtype=torch.float32,
            batch_size=size,
            input_size=side,
            taps=self.taps is not None,
        )


def _cpu_computes_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; where it does not, float32 is faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _reason(error: Exception) -> str:
    """Return the first informative line of an error: OpenVINO's begin with lines about its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    informative = [line for line in lines if line and not line.startswith("Exception from ")]
    return informative[0] if informative else type(error).__name__
