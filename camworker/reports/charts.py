"""Charts as inline SVG for the pages: pure functions of numbers, drawn for about 400 pixels of width.

Colours are classes of the page's style. A chart has a title that says what it shows, and each bar and point
says its own numbers. The axis x is a share from 0 to 1 in all of them.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

_WIDTH: Final = 400
_HEIGHT: Final = 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 392, 12, 220  # of the plot, in the drawing's units
_SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_LEAST_RADIUS, _MOST_RADIUS = 2.5, 12.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A curve. kind: its class in the page's style. best: the point that is marked, if one is."""

    name: str
    kind: str
    points: Sequence[Point]
    best: Point | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a reliability diagram: mean score, accuracy, share of the images, and what it says."""

    score: float
    accuracy: float
    share: float
    says: str


def line_chart(
    title: str,
    lines: Sequence[ChartLine],
    *,
    x_title: str,
    y_title: str,
    fixed: tuple[float, str],
    level: tuple[float, str] | None = None,
) -> Markup:
    """Curves of shares. fixed: a vertical line with its label; level: a horizontal one."""
    plot = _Plot(title, 1.0, _SHARES, x_title, y_title, percent=True)
    x, label = fixed
    plot.add("line", "fixed", x1=plot.x(x), x2=plot.x(x), y1=_TOP, y2=_BOTTOM)
    plot.add("text", "label", label, x=plot.x(x) + 4, y=_BOTTOM - 6)
    if level is not None:
        y, label = level
        plot.add("line", "gaussian", x1=_LEFT, x2=_RIGHT, y1=plot.y(y), y2=plot.y(y))
        # At the right end, where the curves are low.
        plot.add("text", "label end", label, x=_RIGHT - 2, y=plot.y(y) - 5)
    for line in lines:
        path = " ".join(f"{plot.x(px):.1f},{plot.y(py):.1f}" for px, py in line.points)
        plot.add("polyline", line.kind, points=path)
    for line in lines:
        if line.best is not None:
            dot = plot.add("circle", line.kind, cx=plot.x(line.best[0]), cy=plot.y(line.best[1]), r=4)
            _say(dot, f"{line.name}: {line.best[1]:.2%} at {line.best[0]:.2f}")
    return plot.markup()


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    x_title: str,
    y_title: str,
    counted: str,
    right_from: float,
) -> Markup:
    """Counts between edges. counted: what a bar counts. Bars from right_from on have another colour."""
    ticks = count_ticks(max(counts))
    plot = _Plot(title, ticks[-1], ticks, x_title, y_title, percent=False)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right = plot.x(low) + 0.75, plot.x(high) - 0.75
        kind = "right" if low >= right_from else "wrong"
        bar = plot.add(
            "rect", kind, x=left, y=plot.y(count), width=right - left, height=_BOTTOM - plot.y(count)
        )
        _say(bar, f"{low:.2f} to {high:.2f}: {count:,} {counted}")
    plot.add("line", "fixed", x1=plot.x(right_from), x2=plot.x(right_from), y1=_TOP, y2=_BOTTOM)
    return plot.markup()


def reliability_diagram(title: str, dots: Sequence[Dot], *, x_title: str, y_title: str) -> Markup:
    """Accuracy against score (Guo et al. 2017); the diagonal is calibrated. Larger dots are larger shares."""
    plot = _Plot(title, 1.0, _SHARES, x_title, y_title, percent=True)
    plot.add("line", "fixed", x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1))
    for dot in dots:
        radius = _LEAST_RADIUS + (_MOST_RADIUS - _LEAST_RADIUS) * math.sqrt(dot.share)
        circle = plot.add("circle", "dot", cx=plot.x(dot.score), cy=plot.y(dot.accuracy), r=radius)
        _say(circle, dot.says)
    return plot.markup()


def count_ticks(most: int) -> list[int]:
    """Round numbers from 0 to at least most, evenly spaced, five steps at most."""
    step = 1
    for step in (base * 10**power for power in range(16) for base in (1, 2, 5)):
        if 5 * step >= most:
            break
    return list(range(0, step * max(1, math.ceil(most / step)) + 1, step))


class _Plot:
    """A drawing with its axes; x and y give the place of a value in it."""

    def __init__(
        self, title: str, top: float, y_ticks: Sequence[float], x_title: str, y_title: str, *, percent: bool
    ) -> None:
        self._top = top
        self._svg = ET.Element("svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "class": "plot"})
        _say(self._svg, title)
        for value in y_ticks:
            self.add("line", "grid", x1=_LEFT, x2=_RIGHT, y1=self.y(value), y2=self.y(value))
            text = f"{value:.0%}" if percent else f"{value:,}"
            self.add("text", "tick end", text, x=_LEFT - 6, y=self.y(value) + 4)
        for value in _SHARES:
            self.add("text", "tick middle", f"{value:g}", x=self.x(value), y=_BOTTOM + 17)
        self.add("text", "axis middle", x_title, x=(_LEFT + _RIGHT) / 2, y=_HEIGHT - 8)
        centre = (_TOP + _BOTTOM) / 2
        side = self.add("text", "axis middle", y_title, x=0, y=0)
        side.set("transform", f"translate(12 {centre:g}) rotate(-90)")

    def x(self, value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * value

    def y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / self._top

    def add(self, tag: str, kind: str, text: str | None = None, **attributes: Any) -> ET.Element:
        given = {
            name: value if isinstance(value, str) else f"{round(value, 2):g}"
            for name, value in attributes.items()
        }
        element = ET.SubElement(self._svg, tag, {"class": kind, **given})
        element.text = text
        return element

    def markup(self) -> Markup:
        return Markup(ET.tostring(self._svg, encoding="unicode"))


def _say(element: ET.Element, text: str) -> None:
    """Give an element the title that is shown when it is pointed at."""
    ET.SubElement(element, "title").text = text
