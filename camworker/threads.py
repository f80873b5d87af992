"""How the processor cores of a worker are divided between decoding and the network."""

from dataclasses import dataclass
from typing import Final

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

    Without a GPU one batch at a time, on all cores: torch holds Python's lock while a compiled network runs,
    so that a second batch would wait for the first one, and decoders take turns with the network. With
    one: a batch is copied and launched while another one runs.
    """
    if gpu:
        return Threads(decoders=cores, streams=_STREAMS_OF_A_GPU, each=1)
    return Threads(decoders=cores, streams=1, each=cores)
