"""PixelNetwork: a network with its preprocessing, from uint8 pixels on; compiled, if wanted."""

import copy
import time
from pathlib import Path
from typing import Final

import torch
from torch import nn

from camworker.compiling import Compiled, compile_into, load_compiled
from camworker.gap import GapNetwork, Preprocessing

# Root mean square, in standard deviations of the logits. Two orders of rounding in bfloat16 differ by 0.1,
# on noise, of which a network is never sure; a graph that is wrong misses by 1.
_TOLERANCE: Final = 0.3


class PixelNetwork(nn.Module):
    """pixels_BCHW (uint8, S x S, S = input_size) -> features_BCHW and logits_BK, both float32.

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

    def forward(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As it is written, for any number of images."""
        features_BCHW = self.network.features(self.normalised(pixels_BCHW)).float()
        return features_BCHW, self.network.logits(features_BCHW)

    def look(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as fast as it goes: compiled where that was done, and for batches more than half full.

        A smaller batch costs less as it is than filled up; memory that has run out gets smaller ones.
        """
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        size, count = self._shape[0], len(pixels_BCHW)
        if self._compiled is None or not size / 2 < count <= size:
            features_BCHW, logits_BK = self(pixels_BCHW)
            return features_BCHW, logits_BK
        if count < size:
            rows_BCHW = pixels_BCHW.new_zeros(self._shape)
            rows_BCHW[:count] = pixels_BCHW
            pixels_BCHW = rows_BCHW.contiguous(memory_format=torch.channels_last)
        features_BCHW, logits_BK = self._compiled(pixels_BCHW)
        return features_BCHW[:count], logits_BK[:count]

    def compile_into(self, file: Path, *, streams: int) -> str | None:
        """Compile into file, or load what is there; so many threads may then look at a time.

        Returns None, or why the network stays as it is, which is only slower.
        """
        pixels_BCHW = self._noise()
        # A compiler's many parts raise nearly anything; all of it means that this network is not compiled.
        try:
            if not file.exists():
                compile_into(file, self, pixels_BCHW)
            compiled = load_compiled(file, streams)
            with torch.inference_mode():
                logits_BK, expected_BK = compiled(pixels_BCHW)[1], self(pixels_BCHW)[1]
        except Exception as error:
            return next(iter(str(error).splitlines()), "") or type(error).__name__
        miss = (logits_BK - expected_BK).square().mean().sqrt() / expected_BK.std()
        if not miss <= _TOLERANCE:
            return f"its logits would differ by {miss:.2g} of their standard deviation"
        self._compiled = compiled
        return None

    @torch.inference_mode()
    def seconds_each(self) -> float:
        """What an image of a full batch takes here and now, in seconds."""
        pixels_BCHW = self._noise()
        self.look(pixels_BCHW)[1].cpu()  # the first batch waits for what the others find done
        started = time.perf_counter()
        self.look(pixels_BCHW)[1].cpu()
        return (time.perf_counter() - started) / len(pixels_BCHW)

    def _noise(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        pixels_BCHW = torch.randint(256, self._shape, dtype=torch.uint8, generator=noise)
        return pixels_BCHW.to(self.get_buffer("mean").device).contiguous(memory_format=torch.channels_last)
