"""Charts for the pages, as inline SVG of about 400 pixels width.

Colours are classes of the style sheet. Every chart has a title, and every bar and point has a tooltip with
its numbers. The x axis shows a fraction from 0 to 1 in all charts.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

_WIDTH: Final = 400
_HEIGHT: Final = 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 392, 12, 220  # edges of the plotting area, in the units of the viewBox
_TICKS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MIN_RADIUS, _MAX_RADIUS = 2.5, 12.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A curve of a line chart.

    Attributes:
        name: Name of the curve in tooltips and legends.
        kind: Class of the curve in the style sheet.
        points: Points (x, y), both from 0 to 1.
        best: The point to mark, if any.
    """

    name: str
    kind: str
    points: Sequence[Point]
    best: Point | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a reliability diagram.

    Attributes:
        score: Mean score of the images.
        accuracy: Accuracy of the images.
        share: Fraction of all images.
        tooltip: Text that is shown when the point is hovered over.
    """

    score: float
    accuracy: float
    share: float
    tooltip: str


def line_chart(
    title: str,
    lines: Sequence[ChartLine],
    *,
    x_title: str,
    y_title: str,
    fixed: tuple[float, str],
    level: tuple[float, str] | None = None,
) -> Markup:
    """Draw curves of fractions.

    Args:
        title: Title of the chart.
        lines: The curves.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
        fixed: Position and label of a vertical line.
        level: Position and label of a horizontal line, if any.
    """
    plot = _Plot(title, 1.0, _TICKS, x_title, y_title, percent=True)
    x, label = fixed
    plot.add("line", "fixed", x1=plot.x(x), x2=plot.x(x), y1=_TOP, y2=_BOTTOM)
    plot.add("text", "label", label, x=plot.x(x) + 4, y=_BOTTOM - 6)
    if level is not None:
        y, label = level
        plot.add("line", "gaussian", x1=_LEFT, x2=_RIGHT, y1=plot.y(y), y2=plot.y(y))
        # The label is at the right end, where the curves are low.
        plot.add("text", "label end", label, x=_RIGHT - 2, y=plot.y(y) - 5)
    for line in lines:
        path = " ".join(f"{plot.x(px):.1f},{plot.y(py):.1f}" for px, py in line.points)
        plot.add("polyline", line.kind, points=path)
    for line in lines:
        if line.best is not None:
            dot = plot.add("circle", line.kind, cx=plot.x(line.best[0]), cy=plot.y(line.best[1]), r=4)
            _add_tooltip(dot, f"{line.name}: {line.best[1]:.2%} at {line.best[0]:.2f}")
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
    """Draw counts between edges.

    Args:
        title: Title of the chart.
        edges: Edges of the bins, one more than counts.
        counts: Count of each bin.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
        counted: What a bar counts, for its tooltip.
        right_from: Bars from here on have the colour of correct results.
    """
    ticks = count_ticks(max(counts))
    plot = _Plot(title, ticks[-1], ticks, x_title, y_title, percent=False)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right = plot.x(low) + 0.75, plot.x(high) - 0.75
        kind = "right" if low >= right_from else "wrong"
        bar = plot.add(
            "rect", kind, x=left, y=plot.y(count), width=right - left, height=_BOTTOM - plot.y(count)
        )
        _add_tooltip(bar, f"{low:.2f} to {high:.2f}: {count:,} {counted}")
    plot.add("line", "fixed", x1=plot.x(right_from), x2=plot.x(right_from), y1=_TOP, y2=_BOTTOM)
    return plot.markup()


def reliability_diagram(title: str, dots: Sequence[Dot], *, x_title: str, y_title: str) -> Markup:
    """Draw accuracy against score (Guo et al., 2017).

    The diagonal is perfect calibration. The area of a dot is proportional to its fraction of images.
    """
    plot = _Plot(title, 1.0, _TICKS, x_title, y_title, percent=True)
    plot.add("line", "fixed", x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1))
    for dot in dots:
        radius = _MIN_RADIUS + (_MAX_RADIUS - _MIN_RADIUS) * math.sqrt(dot.share)
        circle = plot.add("circle", "dot", cx=plot.x(dot.score), cy=plot.y(dot.accuracy), r=radius)
        _add_tooltip(circle, dot.tooltip)
    return plot.markup()


def count_ticks(maximum: int) -> list[int]:
    """Return round, evenly spaced numbers from 0 to at least `maximum`, in at most five steps."""
    step = 1
    for step in (base * 10**power for power in range(16) for base in (1, 2, 5)):
        if 5 * step >= maximum:
            break
    return list(range(0, step * max(1, math.ceil(maximum / step)) + 1, step))


class _Plot:
    """A drawing with axes; `x` and `y` convert values to positions in it."""

    def __init__(
        self, title: str, top: float, y_ticks: Sequence[float], x_title: str, y_title: str, *, percent: bool
    ) -> None:
        self._top = top
        self._svg = ET.Element("svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "class": "plot"})
        _add_tooltip(self._svg, title)
        for value in y_ticks:
            self.add("line", "grid", x1=_LEFT, x2=_RIGHT, y1=self.y(value), y2=self.y(value))
            text = f"{value:.0%}" if percent else f"{value:,}"
            self.add("text", "tick end", text, x=_LEFT - 6, y=self.y(value) + 4)
        for value in _TICKS:
            self.add("text", "tick middle", f"{value:g}", x=self.x(value), y=_BOTTOM + 17)
        self.add("text", "axis middle", x_title, x=(_LEFT + _RIGHT) / 2, y=_HEIGHT - 8)
        centre = (_TOP + _BOTTOM) / 2
        side = self.add("text", "axis middle", y_title, x=0, y=0)
        side.set("transform", f"translate(12 {centre:g}) rotate(-90)")

    def x(self, value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * value

    def y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / self._top

    def add(self, tag: str, kind: str, text: str | None = None, **attributes: str | float) -> ET.Element:
        formatted = {
            name: value if isinstance(value, str) else f"{round(value, 2):g}"
            for name, value in attributes.items()
        }
        element = ET.SubElement(self._svg, tag, {"class": kind, **formatted})
        element.text = text
        return element

    def markup(self) -> Markup:
        return Markup(ET.tostring(self._svg, encoding="unicode"))


def _add_tooltip(element: ET.Element, text: str) -> None:
    """Add the text that a browser shows when the element is hovered over."""
    ET.SubElement(element, "title").text = text
