"""The connected regions of a map above a level: their boxes and pixels. Compiled (Numba).

Rows become runs of pixels, eight pixels looked at in one word, and only the ends of runs cost more than that.
A run joins the regions that it touches in the row above (8-connected), so no image of labels is ever made.
"""

from typing import Any, Final

import numpy as np

from camworker.boxes.numba_jit import jit

# Columns of a region. Boxes are half-open.
XMIN, YMIN, XMAX, YMAX, PIXELS = range(5)
FIELDS: Final = 5
_PARENT: Final = FIELDS  # one more, while regions still grow together
_START, _END, _REGION = range(3)  # of a run
_ROOM: Final = 64  # regions to begin with; more is made where a map has them
_ONES: Final = np.uint64(0x0101010101010101)


@jit
def _runs_of(row_W: Any, level: Any, mask: Any, words: Any, runs: Any) -> int:
    """The runs of values above level in a row: their number. mask, also seen as words, is room for it."""
    for x in range(len(row_W)):
        mask[x] = 1 if row_W[x] > level else 0
    ends = 0
    inside = np.uint64(0)  # what a word is where no run begins or ends
    for word in range(len(words)):
        change = words[word] ^ inside
        while change != 0:
            lowest = change & (~change + np.uint64(1))
            below = lowest - np.uint64(1)
            # The sum of the ones below, which the multiplication brings to the top byte: the byte's place.
            place = ((below & _ONES) * _ONES) >> np.uint64(56)
            runs[ends >> 1, ends & 1] = 8 * word + np.int64(place)
            ends += 1
            inside ^= _ONES
            change = (words[word] ^ inside) & ~(lowest | below)
    return ends >> 1


@jit
def _root(regions: Any, region: int) -> int:
    while regions[region, _PARENT] != region:
        regions[region, _PARENT] = regions[regions[region, _PARENT], _PARENT]
        region = regions[region, _PARENT]
    return region


@jit
def _take_in(regions: Any, a: int, b: int) -> None:
    """Give region a what b has. Rows come in order, but b may have begun above a."""
    regions[a, XMIN] = min(regions[a, XMIN], regions[b, XMIN])
    regions[a, YMIN] = min(regions[a, YMIN], regions[b, YMIN])
    regions[a, XMAX] = max(regions[a, XMAX], regions[b, XMAX])
    regions[a, YMAX] = max(regions[a, YMAX], regions[b, YMAX])
    regions[a, PIXELS] += regions[b, PIXELS]


@jit
def components_above(map_HW: Any, level: Any) -> Any:
    """The 8-connected regions of map_HW > level: int64 [N, 5], in the order of their first pixels in rows.

    Columns: XMIN, YMIN, XMAX, YMAX, PIXELS.
    """
    height, width = map_HW.shape
    mask = np.zeros(width // 8 * 8 + 8, np.uint8)  # at least a zero behind the row, which ends its last run
    words = mask.view(np.uint64)
    here = np.empty((width // 2 + 1, 3), np.int64)
    there = np.empty_like(here)
    regions = np.empty((_ROOM + width, FIELDS + 1), np.int64)
    count = above = 0
    for y in range(height):
        if count + width > len(regions):
            more = np.empty((2 * len(regions) + width, FIELDS + 1), np.int64)
            for region in range(count):
                for field in range(FIELDS + 1):
                    more[region, field] = regions[region, field]
            regions = more
        here, there = there, here
        runs = _runs_of(map_HW[y], level, mask, words, here)
        first = 0
        for n in range(runs):
            start, end = here[n, _START], here[n, _END]
            while first < above and there[first, _END] < start:
                first += 1
            region, touching = -1, first
            while touching < above and there[touching, _START] <= end:
                other = _root(regions, there[touching, _REGION])
                # The one that was met first in row order stays.
                if region < 0:
                    region = other
                elif region != other:
                    region, other = min(region, other), max(region, other)
                    regions[other, _PARENT] = region
                    _take_in(regions, region, other)
                touching += 1
            if region < 0:
                region = count
                count += 1
                regions[region, XMIN], regions[region, YMIN] = start, y
                regions[region, XMAX], regions[region, PIXELS] = end, 0
                regions[region, _PARENT] = region
            regions[region, XMIN] = min(regions[region, XMIN], start)
            regions[region, XMAX] = max(regions[region, XMAX], end)
            regions[region, YMAX] = y + 1
            regions[region, PIXELS] += end - start
            here[n, _REGION] = region
        above = runs
    kept = 0
    for region in range(count):
        if regions[region, _PARENT] == region:
            for field in range(FIELDS):
                regions[kept, field] = regions[region, field]
            kept += 1
    return regions[:kept, :FIELDS]
