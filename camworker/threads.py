"""How the processor cores of a worker are divided between decoding and the network."""

from dataclasses import dataclass
from typing import Final

# More batches at a time cost memory, and no longer bring anything.
_MOST_STREAMS: Final = 8
_STREAMS_OF_A_GPU: Final = 2


@dataclass(frozen=True, slots=True)
class Threads:
    """decoders read and decode; streams run a batch each through the network, with so many threads each.

    All of them want the same cores. Decoders stop by themselves when they are a few batches ahead.
    """

    decoders: int
    streams: int
    each: int


def divide_threads(cores: int, *, gpu: bool) -> Threads:
    """The threads of a worker with so many cores.

    Without a GPU: as many batches at a time as there are cores, on one thread each. Threads of one batch
    wait for one another at every layer, and for the slowest of them whenever a decoder has taken its core;
    separate batches wait for nothing. With one: a batch is copied and launched while another one runs.
    """
    streams = _STREAMS_OF_A_GPU if gpu else min(cores, _MOST_STREAMS)
    return Threads(decoders=cores, streams=streams, each=1 if gpu else cores // streams)
