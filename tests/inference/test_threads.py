"""How the cores of a worker are divided."""

import pytest

from camworker.inference.threads import ThreadBudget, divide_threads


@pytest.mark.parametrize(
    ("cores", "gpu", "expected"),
    [
        (1, False, ThreadBudget(decoders=1, streams=1, each=1)),
        (2, False, ThreadBudget(decoders=2, streams=2, each=1)),
        (7, False, ThreadBudget(decoders=7, streams=7, each=1)),
        (1, True, ThreadBudget(decoders=1, streams=2, each=1)),
        (16, True, ThreadBudget(decoders=16, streams=2, each=1)),
    ],
)
def test_division(cores, gpu, expected):
    assert divide_threads(cores, gpu=gpu) == expected
