"""How the processor cores of a worker are divided between decoding and the network."""

from dataclasses import dataclass
from typing import Final

_STREAMS_OF_A_GPU: Final = 2


@dataclass(frozen=True, slots=True)
class ThreadBudget:
    """decoders read and decode; streams run a batch each through the network, with so many threads each.

    All of them want the same cores. Decoders stop by themselves when they are a few batches ahead.
    """

    decoders: int
    streams: int
    each: int


def divide_threads(cores: int, *, gpu: bool) -> ThreadBudget:
    """The threads of a worker with so many cores.

    Without a GPU a batch in the network on each core: threads that share one wait for each other in every
    layer. With one: a batch is copied and launched while another one runs.
    """
    return ThreadBudget(decoders=cores, streams=_STREAMS_OF_A_GPU if gpu else cores, each=1)
