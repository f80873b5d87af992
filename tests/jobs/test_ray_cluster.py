"""Workers over the nodes of a cluster: by hand."""

import pytest

from camworker.errors import UsageError
from jobs.ray_cluster import NodeCapacity, Workers, allocate


@pytest.mark.parametrize(
    ("nodes", "asked", "gpus_each", "expected"),
    [
        ([NodeCapacity(2, 0)], None, None, Workers(1, 2, 0)),
        ([NodeCapacity(16, 0)], None, None, Workers(4, 4, 0)),
        ([NodeCapacity(16, 0)], 3, None, Workers(3, 5, 0)),
        ([NodeCapacity(16, 0)], 16, None, Workers(16, 1, 0)),
        # A worker lies on one node: not one of two cores, of which no node has that many.
        ([NodeCapacity(0, 0), NodeCapacity(1, 0), NodeCapacity(1, 0)], None, None, Workers(2, 1, 0)),
        ([NodeCapacity(0, 0), NodeCapacity(3, 0), NodeCapacity(3, 0)], None, None, Workers(2, 3, 0)),
        ([NodeCapacity(0, 0), NodeCapacity(3, 0), NodeCapacity(3, 0)], 1, None, Workers(1, 3, 0)),
        # Three on two nodes: two have to share one.
        ([NodeCapacity(4, 0), NodeCapacity(4, 0)], 3, None, Workers(3, 2, 0)),
        # A worker for each GPU, with as many cores as the node with the fewest a GPU has for one.
        ([NodeCapacity(0, 0), NodeCapacity(7, 1), NodeCapacity(8, 4)], None, None, Workers(5, 2, 1)),
        ([NodeCapacity(0, 0), NodeCapacity(7, 1), NodeCapacity(7, 1)], None, None, Workers(2, 7, 1)),
        ([NodeCapacity(8, 1)], None, 0.5, Workers(2, 4, 0.5)),
        # Not on GPUs, though there are some.
        ([NodeCapacity(8, 1)], 2, 0, Workers(2, 4, 0)),
    ],
)
def test_workers_fit_on_nodes(nodes, asked, gpus_each, expected):
    assert allocate(nodes, asked, gpus_each) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "gpus_each", "message"),
    [
        ([NodeCapacity(2, 0)], 3, None, "3 workers do not fit: there are 2 cores and 0 GPUs, enough for 2"),
        ([NodeCapacity(8, 1), NodeCapacity(8, 1)], None, 2, "no node has 2 GPUs for a worker"),
        ([NodeCapacity(0, 0)], None, None, "no node has cores"),
        ([NodeCapacity(0, 1)], 1, None, "no node has cores"),
    ],
)
def test_what_does_not_fit_is_refused(nodes, asked, gpus_each, message):
    with pytest.raises(UsageError, match=message):
        allocate(nodes, asked, gpus_each)
