"""PixelNetwork: a network with its preprocessing, from uint8 pixels on; compiled, if wanted."""

import copy
import time
from pathlib import Path
from typing import Final

import torch
from torch import nn

from camworker.inference.compile import Compiled, compile_into, load_compiled
from camworker.networks.gap import GapNetwork, Preprocessing

# Root mean square, in standard deviations of the logits. Two orders of rounding in bfloat16 differ by 0.1,
# on noise, of which a network is never sure; a graph that is wrong misses by 1.
_TOLERANCE: Final = 0.3


class PixelNetwork(nn.Module):
    """pixels_BCHW (uint8, S x S, S = input_size) -> features_BCHW and, by look, logits_BK: both float32.

    Only the features run in dtype: the head is a product of small matrices, cheap in float32. The network
    given stays as it was. Normalising is part of what is compiled, and costs no pass over memory then.
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
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self._given = (network, preprocessing)
        self.network = copy.deepcopy(network).to(device)
        self.network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.network.classifier is not None:
            self.network.classifier.float()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, 3, 1, 1) * 255)
        self._shape = (batch_size, 3, input_size, input_size)
        self._compiled: Compiled | None = None
        self.eval()

    def normalised(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The network's own input."""
        return ((pixels_BCHW.float() - self.get_buffer("mean")) / self.get_buffer("std")).to(self.dtype)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """features_BCHW, as the network is written, for any number of images."""
        return self.network.features(self.normalised(pixels_BCHW)).float()

    def features_and_logits(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features_BCHW and logits_BK, as fast as it goes.

        Compiled where that was done, and for batches more than half full.

        A smaller batch costs less as it is than filled up; memory that has run out gets smaller ones.
        """
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        size, count = self._shape[0], len(pixels_BCHW)
        if self._compiled is None or not size / 2 < count <= size:
            features_BCHW = self(pixels_BCHW)
            return features_BCHW, self.network.logits(features_BCHW)
        if count < size:
            rows_BCHW = pixels_BCHW.new_zeros(self._shape)
            rows_BCHW[:count] = pixels_BCHW
            pixels_BCHW = rows_BCHW.contiguous(memory_format=torch.channels_last)
        features_BCHW = self._compiled(pixels_BCHW)[:count]
        return features_BCHW, self.network.logits(features_BCHW)

    def compile_into(self, file: Path, *, streams: int) -> str | None:
        """Compile into file, or load what is there; so many threads may then look at a time.

        Returns None, or why the network stays as it is, which is only slower.
        """
        pixels_BCHW, device = self._noise(), self._device.type
        # A compiler's many parts raise nearly anything; all of it means that this network is not compiled.
        try:
            if not file.exists():
                compile_into(file, self._in_float32() if device == "cpu" else self, pixels_BCHW)
            compiled = load_compiled(file, device=device, dtype=self.dtype, streams=streams)
            with torch.inference_mode():
                logits_BK, expected_BK = (self.network.logits(of(pixels_BCHW)) for of in (compiled, self))
        except Exception as error:
            return _reason(error)
        miss = (logits_BK - expected_BK).square().mean().sqrt() / expected_BK.std()
        if not miss <= _TOLERANCE:
            return f"its logits would differ by {miss:.2g} of their standard deviation"
        self._compiled = compiled
        return None

    @torch.inference_mode()
    def seconds_per_image(self) -> float:
        """What an image of a batch takes here and now, as the network is written, in seconds.

        On the processor of a small batch: there an image of a large one takes as long.
        """
        pixels_BCHW = self._noise()[: 4 if self._device.type == "cpu" else None]
        self(pixels_BCHW).cpu()  # the first batch waits for what the others find done
        started = time.perf_counter()
        self(pixels_BCHW).cpu()
        return (time.perf_counter() - started) / len(pixels_BCHW)

    def _noise(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        pixels_BCHW = torch.randint(256, self._shape, dtype=torch.uint8, generator=noise)
        return pixels_BCHW.to(self._device).contiguous(memory_format=torch.channels_last)

    @property
    def _device(self) -> torch.device:
        return self.get_buffer("mean").device

    def _in_float32(self) -> "PixelNetwork":
        size, _, side, _ = self._shape
        return PixelNetwork(
            *self._given, device=self._device, dtype=torch.float32, batch_size=size, input_size=side
        )


def _reason(error: Exception) -> str:
    """Its first line that says something: OpenVINO's begin with the places in its source it came through."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception from ")]
    return telling[0] if telling else type(error).__name__
