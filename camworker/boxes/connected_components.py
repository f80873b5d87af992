"""The 8-connected components of a map above a level, labelled by a compiled (Numba) kernel.

Each row of the map is cut into runs of pixels above the level. The mask is scanned eight pixels at a time, so
the cost grows with the number of runs, which is small in a smooth map. A run joins the components that it
touches in the row above, so no image of labels is needed.

OpenCV finds the same components, but takes 45 to 66 microseconds longer for a map of 224x224 pixels: 3 to 4%
of all that an image costs a core (tests/benchmarks/boxes.py).
"""

from typing import Any, Final

import numpy as np

from camworker.boxes.numba_jit import jit

# Columns of a component. Its box is half-open. PARENT is a component that it was joined to, or itself.
XMIN, YMIN, XMAX, YMAX, PIXELS, PARENT = range(6)
_COLUMNS: Final = 6
_START, _END, _COMPONENT = range(3)  # columns of a run
_START_CAPACITY: Final = 64  # components; grows when a map has more
_ONES: Final = np.uint64(0x0101010101010101)


@jit
def _find_runs(row_W: Any, level: Any, mask: Any, words: Any, runs: Any) -> int:
    """Write the runs of values above level in a row into runs and return their number.

    mask is a buffer of one byte per pixel, and words is the same memory as 8-byte words.
    """
    for x in range(len(row_W)):
        mask[x] = 1 if row_W[x] > level else 0
    ends = 0
    inside = np.uint64(0)  # the value of a word in which no run begins or ends
    for word in range(len(words)):
        change = words[word] ^ inside
        while change != 0:
            lowest = change & (~change + np.uint64(1))
            below = lowest - np.uint64(1)
            # The multiplication sums the ones below the lowest changed byte into the top byte: its index.
            byte = ((below & _ONES) * _ONES) >> np.uint64(56)
            runs[ends >> 1, ends & 1] = 8 * word + np.int64(byte)
            ends += 1
            inside ^= _ONES
            change = (words[word] ^ inside) & ~(lowest | below)
    return ends >> 1


@jit
def _root(components: Any, index: int) -> int:
    while components[index, PARENT] != index:
        components[index, PARENT] = components[components[index, PARENT], PARENT]
        index = components[index, PARENT]
    return index


@jit
def _absorb(components: Any, a: int, b: int) -> None:
    """Add component b to component a. Rows come in order, but b may have begun above a."""
    components[a, XMIN] = min(components[a, XMIN], components[b, XMIN])
    components[a, YMIN] = min(components[a, YMIN], components[b, YMIN])
    components[a, XMAX] = max(components[a, XMAX], components[b, XMAX])
    components[a, YMAX] = max(components[a, YMAX], components[b, YMAX])
    components[a, PIXELS] += components[b, PIXELS]


@jit
def components_above(map_HW: Any, level: Any) -> Any:
    """Return the 8-connected components of map_HW > level.

    Args:
        map_HW: The map, C-contiguous floats [H, W].
        level: A number of the map's dtype.

    Returns:
        int64 [N, 5] with the columns XMIN, YMIN, XMAX, YMAX (half-open box in pixels of the map) and PIXELS,
        in row order of the components' first pixels.
    """
    height, width = map_HW.shape
    mask = np.zeros(width // 8 * 8 + 8, np.uint8)  # at least one zero behind the row ends its last run
    words = mask.view(np.uint64)
    runs = np.empty((width // 2 + 1, 3), np.int64)
    runs_above = np.empty_like(runs)
    components = np.empty((_START_CAPACITY + width, _COLUMNS), np.int64)
    count = count_above = 0
    for y in range(height):
        if count + width > len(components):
            more = np.empty((2 * len(components) + width, _COLUMNS), np.int64)
            for index in range(count):
                for column in range(_COLUMNS):
                    more[index, column] = components[index, column]
            components = more
        runs, runs_above = runs_above, runs
        run_count = _find_runs(map_HW[y], level, mask, words, runs)
        first = 0
        for n in range(run_count):
            start, end = runs[n, _START], runs[n, _END]
            while first < count_above and runs_above[first, _END] < start:
                first += 1
            component, touching = -1, first
            while touching < count_above and runs_above[touching, _START] <= end:
                other = _root(components, runs_above[touching, _COMPONENT])
                # The component that was met first in row order stays.
                if component < 0:
                    component = other
                elif component != other:
                    component, other = min(component, other), max(component, other)
                    components[other, PARENT] = component
                    _absorb(components, component, other)
                touching += 1
            if component < 0:
                component = count
                count += 1
                components[component, XMIN], components[component, YMIN] = start, y
                components[component, XMAX], components[component, PIXELS] = end, 0
                components[component, PARENT] = component
            components[component, XMIN] = min(components[component, XMIN], start)
            components[component, XMAX] = max(components[component, XMAX], end)
            components[component, YMAX] = y + 1
            components[component, PIXELS] += end - start
            runs[n, _COMPONENT] = component
        count_above = run_count
    kept = 0
    for index in range(count):
        if components[index, PARENT] == index:
            for column in range(PARENT):
                components[kept, column] = components[index, column]
            kept += 1
    return components[:kept, :PARENT]
