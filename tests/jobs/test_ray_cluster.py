"""Dividing the cores and GPUs of a cluster among workers."""

import pytest

from camworker.errors import UsageError
from jobs.ray_cluster import NodeCapacity, Workers, allocate


@pytest.mark.parametrize(
    ("nodes", "count", "gpus_per_worker", "expected"),
    [
        ([NodeCapacity(2, 0)], None, None, Workers(1, 2, 0)),
        ([NodeCapacity(16, 0)], None, None, Workers(4, 4, 0)),
        ([NodeCapacity(16, 0)], 3, None, Workers(3, 5, 0)),
        ([NodeCapacity(16, 0)], 16, None, Workers(16, 1, 0)),
        # A worker runs on one node, and no node has two cores.
        ([NodeCapacity(0, 0), NodeCapacity(1, 0), NodeCapacity(1, 0)], None, None, Workers(2, 1, 0)),
        ([NodeCapacity(0, 0), NodeCapacity(3, 0), NodeCapacity(3, 0)], None, None, Workers(2, 3, 0)),
        ([NodeCapacity(0, 0), NodeCapacity(3, 0), NodeCapacity(3, 0)], 1, None, Workers(1, 3, 0)),
        # Of three workers on two nodes, two share a node.
        ([NodeCapacity(4, 0), NodeCapacity(4, 0)], 3, None, Workers(3, 2, 0)),
        # One worker per GPU, with as many cores as the node with the fewest cores per GPU has for one.
        ([NodeCapacity(0, 0), NodeCapacity(7, 1), NodeCapacity(8, 4)], None, None, Workers(5, 2, 1)),
        ([NodeCapacity(0, 0), NodeCapacity(7, 1), NodeCapacity(7, 1)], None, None, Workers(2, 7, 1)),
        ([NodeCapacity(8, 1)], None, 0.5, Workers(2, 4, 0.5)),
        # GPUs are not used on request.
        ([NodeCapacity(8, 1)], 2, 0, Workers(2, 4, 0)),
    ],
)
def test_workers_fit_on_nodes(
    nodes: list[NodeCapacity], count: int | None, gpus_per_worker: float | None, expected: Workers
) -> None:
    assert allocate(nodes, count, gpus_per_worker) == expected


@pytest.mark.parametrize(
    ("nodes", "count", "gpus_per_worker", "message"),
    [
        ([NodeCapacity(2, 0)], 3, None, "3 workers do not fit: there are 2 cores and 0 GPUs, enough for 2"),
        ([NodeCapacity(8, 1), NodeCapacity(8, 1)], None, 2, "no node has 2 GPUs for a worker"),
        ([NodeCapacity(0, 0)], None, None, "no node has cores"),
        ([NodeCapacity(0, 1)], 1, None, "no node has cores"),
    ],
)
def test_too_many_workers_are_refused(
    nodes: list[NodeCapacity], count: int | None, gpus_per_worker: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        allocate(nodes, count, gpus_per_worker)
