"""How the cores of a worker are divided."""

import pytest

from camworker.inference.threads import Threads, divide_threads


@pytest.mark.parametrize(
    ("cores", "gpu", "expected"),
    [
        (1, False, Threads(decoders=1, streams=1, each=1)),
        (2, False, Threads(decoders=2, streams=2, each=1)),
        (7, False, Threads(decoders=7, streams=7, each=1)),
        (1, True, Threads(decoders=1, streams=2, each=1)),
        (16, True, Threads(decoders=16, streams=2, each=1)),
    ],
)
def test_division(cores, gpu, expected):
    assert divide_threads(cores, gpu=gpu) == expected
