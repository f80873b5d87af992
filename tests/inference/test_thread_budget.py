"""How the cores of a worker are divided."""

import pytest

from camworker.inference.prefetch import ThreadBudget, divide_threads


@pytest.mark.parametrize(
    ("cores", "gpu", "expected"),
    [
        (1, False, ThreadBudget(decode_threads=1, inference_streams=1, intra_op_threads=1)),
        (2, False, ThreadBudget(decode_threads=2, inference_streams=2, intra_op_threads=1)),
        (7, False, ThreadBudget(decode_threads=7, inference_streams=7, intra_op_threads=1)),
        (1, True, ThreadBudget(decode_threads=1, inference_streams=2, intra_op_threads=1)),
        (16, True, ThreadBudget(decode_threads=16, inference_streams=2, intra_op_threads=1)),
    ],
)
def test_division(cores, gpu, expected):
    assert divide_threads(cores, gpu=gpu) == expected
