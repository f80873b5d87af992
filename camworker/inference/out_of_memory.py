"""Running out of memory: the network looks at fewer images at a time, down to one."""

import logging
from collections.abc import Sequence
from typing import Final

import torch

from camworker.errors import Failure
from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer, Maps

_log = logging.getLogger(__name__)

ForwardPiece = tuple[Maps | None, Sequence[PreprocessedImage | Failure]]

# Of an allocation that failed outside its own allocators PyTorch knows words alone.
_WORDS: Final = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class AdaptiveForward:
    """Localizer.forward, with fewer images at a time once memory has run out.

    limit: the most images the network is given at a time; halved with every failure, and kept. Several
    threads may call it.
    """

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self.limit = localizer.batch_size

    def __call__(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> list[ForwardPiece]:
        """The maps of a batch, in pieces of at most limit images. MemoryError where one is too many."""
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
                _log.warning("out of memory: fewer images at a time", extra={"batch_size": self.limit})
        return pieces

    def _try(
        self, batch: Sequence[PreprocessedImage | Failure], labels: Sequence[Sequence[int]]
    ) -> Maps | str | None:
        """The maps, or how memory ran out: as a value, because the error's frames hold what has to go."""
        try:
            return self._localizer.forward(batch, labels)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error).partition("\n")[0]


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an error of PyTorch or Python says that memory ran out, on the device or here."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _WORDS)
