"""`AdaptiveForward`: when memory runs out, run the network on fewer images at a time, down to one."""

import logging
from collections.abc import Sequence
from typing import Final

import torch

from camworker.errors import Failure, first_line
from camworker.images.decode import PreprocessedImage
from camworker.inference.cam_network import Maps
from camworker.inference.localizer import Localizer

_LOG: Final = logging.getLogger(__name__)

# The maps of consecutive images of a batch, and these images.
ForwardPiece = tuple[Maps | None, Sequence[PreprocessedImage | Failure]]

# Out-of-memory errors from outside PyTorch's allocators carry no type; match the message.
_MESSAGES: Final = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class AdaptiveForward:
    """`Localizer.forward` with fewer images at a time once memory has run out. Threads may share it.

    Attributes:
        limit: The most images that the network is given at a time. It is halved on each failure, for good.
    """

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self.limit = localizer.batch_size

    def __call__(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> list[ForwardPiece]:
        """Run the network on a batch, in pieces of at most `limit` images.

        Args:
            batch: The images.
            labels: For each image the indices of its target classes.

        Raises:
            MemoryError: There is not enough memory for a single image.
        """
        pieces: list[ForwardPiece] = []
        start = 0
        while start < len(batch):
            rows = slice(start, min(start + self.limit, len(batch)))
            maps = self._try(batch[rows], labels[rows])
            size = rows.stop - start
            if not isinstance(maps, str):
                pieces.append((maps, batch[rows]))
                start = rows.stop
            elif size == 1:
                raise MemoryError(f"the network has not enough memory for one image: {maps}")
            else:
                self.limit = min(self.limit, size // 2)
                _LOG.warning("out of memory: fewer images at a time", extra={"batch_size": self.limit})
        return pieces

    def _try(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> Maps | str | None:
        """Return the maps, or how memory ran out.

        That is a value and not an error, because the frames of an error would keep the memory that has to
        be freed.
        """
        try:
            return self._localizer.forward(batch, labels)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether an error of PyTorch or Python says that memory ran out, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _MESSAGES)
