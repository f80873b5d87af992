"""The connected components of a map at every threshold, found in one pass by a compiled (Numba) kernel.

One scan over the rows follows all thresholds at once. Along a row the level of the pixels rises and falls: a
rise from a to b begins a run of pixels at the thresholds a to b - 1, a fall ends one. The cost grows with the
number of runs, of which a smooth map has few, and not with pixels times thresholds. A run joins the
components of the runs that it touches in the row above (8-connected); a gap between two runs joins the gaps
above it (4-connected). A component of gaps that never reaches the edge of the map is a hole.

OpenCV's contours, one threshold after another, give the same boxes in 7.2 ms a map instead of 0.8 ms, which
would make all of `summarize` five times as slow (tests/benchmarks/boxes.py).
"""

from typing import Any, Final

import numpy as np

from camworker.boxes.connected_components import PARENT, PIXELS, XMAX, XMIN, YMAX, YMIN
from camworker.boxes.numba_jit import jit

# More columns of a node, which is a component or a hole. AREA is twice the area of the polygon through the
# centres of the outermost pixels, so that it is a whole number. SURROUNDING is the node that a component or
# hole lies in.
AREA, SURROUNDING, HOLE = range(6, 9)
NODE_COLUMNS: Final = 9
_START, _END, _NODE, _GAP = range(4)  # columns of a run; _GAP is the node of the gap behind it


@jit
def _root(nodes: Any, t: int, node: int) -> int:
    while nodes[node, t, PARENT] != node:
        nodes[node, t, PARENT] = nodes[nodes[node, t, PARENT], t, PARENT]
        node = nodes[node, t, PARENT]
    return node


@jit
def _join(nodes: Any, t: int, a: int, b: int) -> int:
    """Join two components and return the root. The one that was met first in row order stays."""
    a, b = _root(nodes, t, a), _root(nodes, t, b)
    if a < b:
        nodes[b, t, PARENT] = a
        return a
    nodes[a, t, PARENT] = b
    return b


@jit
def _grow(nodes: Any, t: int, node: int, y: int, start: int, end: int) -> None:
    """Add a run of pixels to a node. Rows come in order, so ymin does not change."""
    nodes[node, t, XMIN] = min(nodes[node, t, XMIN], start)
    nodes[node, t, XMAX] = max(nodes[node, t, XMAX], end)
    nodes[node, t, YMAX] = y + 1
    nodes[node, t, PIXELS] += end - start


@jit
def _new(nodes: Any, t: int, node: int, y: int, surrounding: int, hole: int) -> None:
    nodes[node, t, PARENT] = node
    nodes[node, t, XMIN], nodes[node, t, YMIN] = 1 << 30, y
    nodes[node, t, XMAX] = nodes[node, t, YMAX] = 0
    nodes[node, t, PIXELS] = nodes[node, t, AREA] = 0
    nodes[node, t, SURROUNDING], nodes[node, t, HOLE] = surrounding, hole


@jit
def _shared(start: int, end: int, above_start: int, above_end: int) -> int:
    """Return twice the area that two touching runs span between their rows.

    The area is that of polygons through pixel centres: 1 for a square of four centres, 1/2 for a triangle.
    """
    overlap = min(end, above_end) - max(start, above_start)
    if overlap <= 0:
        return 0
    return 2 * (overlap - 1) + (start != above_start) + (end != above_end)


@jit
def _add_run(
    nodes: Any,
    counts: Any,
    t: int,
    runs: Any,
    row: int,
    index: int,
    row_above: int,
    above: int,
    first: int,
    y: int,
) -> int:
    """Give a run its node.

    above is the number of runs in the row above, and first the first of them that may touch this run. Returns
    the value of first for the next run of the row.
    """
    start, end = runs[row, index, t, _START], runs[row, index, t, _END]
    while first < above and runs[row_above, first, t, _END] < start:
        first += 1
    node, touching = -1, first
    while touching < above and runs[row_above, touching, t, _START] <= end:
        joined = runs[row_above, touching, t, _NODE]
        node = _join(nodes, t, node, joined) if node >= 0 else _root(nodes, t, joined)
        nodes[node, t, AREA] += _shared(
            start, end, runs[row_above, touching, t, _START], runs[row_above, touching, t, _END]
        )
        touching += 1
    if node < 0:
        # The node above its first pixel surrounds it: the gap between two runs, or the outside.
        surrounding = runs[row_above, first - 1, t, _GAP] if 0 < first < above else 0
        node = counts[t]
        _new(nodes, t, node, y, surrounding, 0)
        counts[t] += 1
    _grow(nodes, t, node, y, start, end)
    runs[row, index, t, _NODE] = node
    return first


@jit
def _add_gaps(
    nodes: Any,
    counts: Any,
    t: int,
    runs: Any,
    row: int,
    count: int,
    row_above: int,
    above: int,
    y: int,
    last: bool,
) -> None:
    """Give each gap between the runs of a row its node.

    Gaps of the row above that open outwards are joined to node 0, the outside.
    """
    for j in range(above - 1):
        if (
            count == 0
            or runs[row, 0, t, _START] > runs[row_above, j, t, _END]
            or runs[row, count - 1, t, _END] < runs[row_above, j + 1, t, _START]
        ):
            _join(nodes, t, 0, runs[row_above, j, t, _GAP])
    for i in range(count - 1):
        start, end = runs[row, i, t, _END], runs[row, i + 1, t, _START]
        node = -1
        if (
            last
            or above == 0
            or start < runs[row_above, 0, t, _START]
            or end > runs[row_above, above - 1, t, _END]
        ):
            node = 0
        shared = 0
        for j in range(above - 1):
            above_start, above_end = runs[row_above, j, t, _END], runs[row_above, j + 1, t, _START]
            if start < above_end and end > above_start:
                joined = runs[row_above, j, t, _GAP]
                node = _join(nodes, t, node, joined) if node >= 0 else _root(nodes, t, joined)
                shared += _shared(start, end, above_start, above_end)
        if node < 0:
            node = counts[t]
            _new(nodes, t, node, y, runs[row, i, t, _NODE], 1)
            counts[t] += 1
        _grow(nodes, t, node, y, start, end)
        # The polygon around a hole passes through the pixels outside it: 2 per pixel, less the shared area.
        nodes[node, t, AREA] += 4 * (end - start) - shared
        runs[row, i, t, _GAP] = node


@jit
def _settle(nodes: Any, t: int, count: int) -> None:
    """Add to each root the sums of its members, and to each component the area of the holes in it."""
    for node in range(count - 1, 0, -1):
        root = _root(nodes, t, node)
        if root != node:
            nodes[root, t, XMIN] = min(nodes[root, t, XMIN], nodes[node, t, XMIN])
            nodes[root, t, YMIN] = min(nodes[root, t, YMIN], nodes[node, t, YMIN])
            nodes[root, t, XMAX] = max(nodes[root, t, XMAX], nodes[node, t, XMAX])
            nodes[root, t, YMAX] = max(nodes[root, t, YMAX], nodes[node, t, YMAX])
            nodes[root, t, PIXELS] += nodes[node, t, PIXELS]
            nodes[root, t, AREA] += nodes[node, t, AREA]
    # A node that lies in another one was met after it.
    for node in range(count - 1, 0, -1):
        if nodes[node, t, PARENT] == node:
            surrounding = _root(nodes, t, nodes[node, t, SURROUNDING])
            nodes[surrounding, t, AREA] += nodes[node, t, AREA]


@jit
def label_all_thresholds(levels: Any, thresholds: int, nodes: Any, counts: Any, runs: Any) -> bool:
    """Label the components and holes of a map at every threshold.

    Args:
        levels: The number of thresholds that lie below each pixel, uint8 [H, W].
        thresholds: Number of thresholds T.
        nodes: Output, int32 [capacity, T, NODE_COLUMNS]. Node 0 of a threshold is the outside of the map; a
            node whose PARENT is another node has been joined to it.
        counts: Output, the number of nodes at each threshold, int32 [T].
        runs: Buffer, int32 [2, W // 2 + 2, T, 4].

    Returns:
        Whether the capacity of nodes was large enough; if not, nodes and counts are incomplete.
    """
    height, width = levels.shape
    # A row adds at most one node for each run and each gap.
    capacity = nodes.shape[0] - width - 2
    run_counts = np.zeros((2, thresholds), np.int32)
    starts = np.zeros(thresholds, np.int32)
    for t in range(thresholds):
        _new(nodes, t, 0, 0, 0, 1)
        counts[t] = 1
    highest_above = 0
    for y in range(height):
        row, row_above = y % 2, 1 - y % 2
        level, highest = 0, 0
        for t in range(thresholds):
            run_counts[row, t] = 0
            if counts[t] > capacity:
                return False
        for x in range(width + 1):
            now = int(levels[y, x]) if x < width else 0
            if now > level:
                for t in range(level, now):
                    starts[t] = x
                highest = max(highest, now)
            else:
                for t in range(now, level):
                    index = run_counts[row, t]
                    runs[row, index, t, _START], runs[row, index, t, _END] = starts[t], x
                    run_counts[row, t] = index + 1
            level = now
        for t in range(max(highest, highest_above)):
            count, above = run_counts[row, t], run_counts[row_above, t]
            if count == 1 and above == 1:
                # By far the most frequent case: one run below one run.
                start, end = runs[row, 0, t, _START], runs[row, 0, t, _END]
                above_start, above_end = runs[row_above, 0, t, _START], runs[row_above, 0, t, _END]
                if start <= above_end and above_start <= end:
                    node = _root(nodes, t, runs[row_above, 0, t, _NODE])
                    nodes[node, t, AREA] += _shared(start, end, above_start, above_end)
                    _grow(nodes, t, node, y, start, end)
                    runs[row, 0, t, _NODE] = node
                    continue
            first = 0
            for index in range(count):
                first = _add_run(nodes, counts, t, runs, row, index, row_above, above, first, y)
            if count > 1 or above > 1:
                _add_gaps(nodes, counts, t, runs, row, count, row_above, above, y, y == height - 1)
        highest_above = highest
    for t in range(thresholds):
        _settle(nodes, t, counts[t])
    return True
