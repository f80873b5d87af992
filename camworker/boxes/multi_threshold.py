"""The connected components of a map at every threshold, in one pass, with their holes. Compiled (Numba).

One scan over the rows follows all thresholds at once. Along a row the level rises and falls; a rise from
a to b begins a run of pixels for the thresholds a to b - 1, a fall ends one. So the work is in proportion to
the ends of runs, which a smooth map has few of, and not to pixels times thresholds. A run joins the
components of the runs that it touches in the row above (8-connected); a gap between two runs joins those
of the gaps above (4-connected). A gap's component that never reaches the map's edge is a hole.
"""

from typing import Any, Final

import numpy as np

from camworker.boxes.numba_jit import jit

# Columns of a node, which is a component or a hole. Boxes are half-open; areas are doubled, so whole numbers.
PARENT, XMIN, YMIN, XMAX, YMAX, PIXELS, AREA, AROUND, HOLE = range(9)
FIELDS: Final = 9
_START, _END, _NODE, _GAP = range(4)  # of a run; _GAP: the node of the gap behind it


@jit
def _root(nodes: Any, t: int, node: int) -> int:
    while nodes[node, t, PARENT] != node:
        nodes[node, t, PARENT] = nodes[nodes[node, t, PARENT], t, PARENT]
        node = nodes[node, t, PARENT]
    return node


@jit
def _join(nodes: Any, t: int, a: int, b: int) -> int:
    """One component of two; the one that was met first in row order stays."""
    a, b = _root(nodes, t, a), _root(nodes, t, b)
    if a < b:
        nodes[b, t, PARENT] = a
        return a
    nodes[a, t, PARENT] = b
    return b


@jit
def _grow(nodes: Any, t: int, node: int, y: int, start: int, end: int) -> None:
    """Add a run of pixels. Rows come in order, so that ymin is the node's first."""
    nodes[node, t, XMIN] = min(nodes[node, t, XMIN], start)
    nodes[node, t, XMAX] = max(nodes[node, t, XMAX], end)
    nodes[node, t, YMAX] = y + 1
    nodes[node, t, PIXELS] += end - start


@jit
def _new(nodes: Any, t: int, node: int, y: int, around: int, hole: int) -> None:
    nodes[node, t, PARENT] = node
    nodes[node, t, XMIN], nodes[node, t, YMIN] = 1 << 30, y
    nodes[node, t, XMAX] = nodes[node, t, YMAX] = 0
    nodes[node, t, PIXELS] = nodes[node, t, AREA] = 0
    nodes[node, t, AROUND], nodes[node, t, HOLE] = around, hole


@jit
def _shared(start: int, end: int, above_start: int, above_end: int) -> int:
    """Twice the area of polygons through pixel centres that two touching runs span between their rows.

    A square of four centres counts 1, a triangle of three 1/2.
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
    here: int,
    place: int,
    there: int,
    above: int,
    first: int,
    y: int,
) -> int:
    """Give a run its node. first, of the above runs of the row before, may be the first that touches it.

    Returns what first is for the next run.
    """
    start, end = runs[here, place, t, _START], runs[here, place, t, _END]
    while first < above and runs[there, first, t, _END] < start:
        first += 1
    node, touching = -1, first
    while touching < above and runs[there, touching, t, _START] <= end:
        joined = runs[there, touching, t, _NODE]
        node = _join(nodes, t, node, joined) if node >= 0 else _root(nodes, t, joined)
        nodes[node, t, AREA] += _shared(
            start, end, runs[there, touching, t, _START], runs[there, touching, t, _END]
        )
        touching += 1
    if node < 0:
        # Above its first pixel is what surrounds it: the gap between two runs, or the outside.
        around = runs[there, first - 1, t, _GAP] if 0 < first < above else 0
        node = counts[t]
        _new(nodes, t, node, y, around, 0)
        counts[t] += 1
    _grow(nodes, t, node, y, start, end)
    runs[here, place, t, _NODE] = node
    return first


@jit
def _add_gaps(
    nodes: Any,
    counts: Any,
    t: int,
    runs: Any,
    here: int,
    count: int,
    there: int,
    above: int,
    y: int,
    last: bool,
) -> None:
    """Give each gap between the count runs of a row its node; gaps above that open outwards lose theirs."""
    for j in range(above - 1):
        if (
            count == 0
            or runs[here, 0, t, _START] > runs[there, j, t, _END]
            or runs[here, count - 1, t, _END] < runs[there, j + 1, t, _START]
        ):
            _join(nodes, t, 0, runs[there, j, t, _GAP])
    for i in range(count - 1):
        start, end = runs[here, i, t, _END], runs[here, i + 1, t, _START]
        node = -1
        if last or above == 0 or start < runs[there, 0, t, _START] or end > runs[there, above - 1, t, _END]:
            node = 0
        own = 0
        for j in range(above - 1):
            above_start, above_end = runs[there, j, t, _END], runs[there, j + 1, t, _START]
            if start < above_end and end > above_start:
                joined = runs[there, j, t, _GAP]
                node = _join(nodes, t, node, joined) if node >= 0 else _root(nodes, t, joined)
                own += _shared(start, end, above_start, above_end)
        if node < 0:
            node = counts[t]
            _new(nodes, t, node, y, runs[here, i, t, _NODE], 1)
            counts[t] += 1
        _grow(nodes, t, node, y, start, end)
        # Polygons around a hole pass through the pixels outside it: 2 for a pixel, less what is shared.
        nodes[node, t, AREA] += 4 * (end - start) - own
        runs[here, i, t, _GAP] = node


@jit
def _settle(nodes: Any, t: int, count: int) -> None:
    """Give roots what their members gathered, and to each component the area of the holes in it."""
    for node in range(count - 1, 0, -1):
        root = _root(nodes, t, node)
        if root != node:
            nodes[root, t, XMIN] = min(nodes[root, t, XMIN], nodes[node, t, XMIN])
            nodes[root, t, YMIN] = min(nodes[root, t, YMIN], nodes[node, t, YMIN])
            nodes[root, t, XMAX] = max(nodes[root, t, XMAX], nodes[node, t, XMAX])
            nodes[root, t, YMAX] = max(nodes[root, t, YMAX], nodes[node, t, YMAX])
            nodes[root, t, PIXELS] += nodes[node, t, PIXELS]
            nodes[root, t, AREA] += nodes[node, t, AREA]
    # What lies in another was met after it.
    for node in range(count - 1, 0, -1):
        if nodes[node, t, PARENT] == node:
            around = _root(nodes, t, nodes[node, t, AROUND])
            nodes[around, t, AREA] += nodes[node, t, AREA]


@jit
def label_all_thresholds(levels: Any, thresholds: int, nodes: Any, counts: Any, runs: Any) -> bool:
    """Fill nodes [capacity, thresholds, fields] and counts [thresholds]. False: capacity is too small.

    levels [H, W]: how many thresholds lie below each pixel. Node 0 of a threshold is the outside.
    runs [2, W // 2 + 2, thresholds, 4]: room to work in.
    """
    height, width = levels.shape
    # A row adds at most a node for each run and each gap.
    capacity = nodes.shape[0] - width - 2
    run_counts = np.zeros((2, thresholds), np.int32)
    starts = np.zeros(thresholds, np.int32)
    for t in range(thresholds):
        _new(nodes, t, 0, 0, 0, 1)
        counts[t] = 1
    highest_above = 0
    for y in range(height):
        here, there = y % 2, 1 - y % 2
        level, highest = 0, 0
        for t in range(thresholds):
            run_counts[here, t] = 0
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
                    place = run_counts[here, t]
                    runs[here, place, t, _START], runs[here, place, t, _END] = starts[t], x
                    run_counts[here, t] = place + 1
            level = now
        for t in range(max(highest, highest_above)):
            count, above = run_counts[here, t], run_counts[there, t]
            if count == 1 and above == 1:
                # By far the most: one run below one run.
                start, end = runs[here, 0, t, _START], runs[here, 0, t, _END]
                above_start, above_end = runs[there, 0, t, _START], runs[there, 0, t, _END]
                if start <= above_end and above_start <= end:
                    node = _root(nodes, t, runs[there, 0, t, _NODE])
                    nodes[node, t, AREA] += _shared(start, end, above_start, above_end)
                    _grow(nodes, t, node, y, start, end)
                    runs[here, 0, t, _NODE] = node
                    continue
            first = 0
            for place in range(count):
                first = _add_run(nodes, counts, t, runs, here, place, there, above, first, y)
            if count > 1 or above > 1:
                _add_gaps(nodes, counts, t, runs, here, count, there, above, y, y == height - 1)
        highest_above = highest
    for t in range(thresholds):
        _settle(nodes, t, counts[t])
    return True
