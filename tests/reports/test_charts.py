"""Charts: positions agree with the axes, marks have tooltips with their numbers, and names are escaped."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from camworker.reports.charts import ChartLine, Dot, count_ticks, histogram, line_chart, reliability_diagram

HOSTILE = '</svg><script>alert("x")</script>'


def parsed(markup: Markup) -> ET.Element:
    """Parse the chart, which must be well-formed XML."""
    return ET.fromstring(markup)


def tick_x(svg: ET.Element) -> dict[str, float]:
    """The position of each label of the x axis."""
    return {e.text or "": float(e.get("x", "")) for e in svg if e.get("class") == "tick middle"}


def grid_y(svg: ET.Element) -> list[float]:
    """The positions of the grid lines, by ascending value."""
    return [float(e.get("y1", "")) for e in svg if e.get("class") == "grid"]


def titles(svg: ET.Element) -> list[str]:
    return [e.text or "" for e in svg.iter("title")]


def a_line_chart(**changes: object) -> ET.Element:
    arguments = {
        "title": "a title",
        "lines": [ChartLine("half", "half", [(0.0, 0.0), (0.2, 1.0), (1.0, 0.4)], best=(0.2, 1.0))],
        "x_title": "threshold",
        "y_title": "share",
        "fixed": (0.2, "fixed"),
        "level": (0.6, "Gaussian"),
        **changes,
    }
    return parsed(line_chart(arguments.pop("title"), arguments.pop("lines"), **arguments))  # type: ignore[arg-type]


def test_curves_run_through_their_points() -> None:
    svg = a_line_chart()
    curve = next(e for e in svg if e.tag == "polyline")
    points = [tuple(map(float, pair.split(","))) for pair in curve.get("points", "").split()]
    x, y = tick_x(svg), grid_y(svg)  # y: 0, 20, 40, 60, 80 and 100%
    expected = [(x["0"], y[0]), (x["0.2"], y[5]), (x["1"], y[2])]
    assert points == [pytest.approx(point, abs=0.06) for point in expected]
    mark = next(e for e in svg if e.tag == "circle")
    assert (float(mark.get("cx", "")), float(mark.get("cy", ""))) == pytest.approx(expected[1], abs=0.06)


def test_the_fixed_threshold_is_vertical_and_the_baseline_horizontal() -> None:
    svg = a_line_chart()
    fixed = next(e for e in svg if e.get("class") == "fixed")
    assert float(fixed.get("x1", "")) == float(fixed.get("x2", "")) == tick_x(svg)["0.2"]
    gaussian = next(e for e in svg if e.get("class") == "gaussian")
    assert float(gaussian.get("y1", "")) == float(gaussian.get("y2", "")) == grid_y(svg)[3]
    assert not [e for e in a_line_chart(level=None) if e.get("class") == "gaussian"]


def test_charts_and_marks_have_escaped_titles() -> None:
    svg = a_line_chart(title=HOSTILE, x_title=HOSTILE, y_title=HOSTILE, fixed=(0.2, HOSTILE))
    assert svg.get("role") == "img"
    assert titles(svg) == [HOSTILE, "half: 100.00% at 0.20"]
    assert [e.tag for e in svg.iter("script")] == []


def test_the_heights_of_bars_are_their_counts() -> None:
    markup = histogram(
        "t", [0.0, 0.5, 1.0], [10, 20], x_title="x", y_title="y", counted="labels", right_from=0.5
    )
    svg = parsed(markup)
    low, high = (e for e in svg if e.tag == "rect")
    y = grid_y(svg)
    assert float(low.get("height", "")) == pytest.approx((y[0] - y[-1]) / 2, abs=0.01)  # ticks: 0, 5 .. 20
    assert float(high.get("height", "")) == pytest.approx(y[0] - y[-1], abs=0.01)
    assert 0 < y[-1] < y[0] < 264  # inside the drawing
    assert [low.get("class"), high.get("class")] == ["wrong", "right"]
    assert titles(svg) == ["t", "0.00 to 0.50: 10 labels", "0.50 to 1.00: 20 labels"]


def test_a_histogram_without_counts() -> None:
    svg = parsed(histogram("t", [0, 1], [0], x_title="x", y_title="y", counted="labels", right_from=0.5))
    assert float(next(e for e in svg if e.tag == "rect").get("height", "")) == 0


def test_the_positions_of_dots_are_score_and_accuracy() -> None:
    dots = [Dot(0.8, 0.4, 0.25, "few"), Dot(1.0, 1.0, 0.75, HOSTILE)]
    svg = parsed(reliability_diagram("t", dots, x_title="score", y_title="right"))
    few, many = (e for e in svg if e.tag == "circle")
    x, y = tick_x(svg), grid_y(svg)
    assert (float(few.get("cx", "")), float(few.get("cy", ""))) == pytest.approx((x["0.8"], y[2]), abs=0.01)
    assert float(few.get("r", "")) < float(many.get("r", ""))
    assert titles(svg) == ["t", "few", HOSTILE]


@pytest.mark.parametrize(
    ("maximum", "ticks"),
    [(0, [0, 1]), (1, [0, 1]), (5, [0, 1, 2, 3, 4, 5]), (7, [0, 2, 4, 6, 8]), (35, [0, 10, 20, 30, 40])],
)
def test_ticks_are_round(maximum: int, ticks: list[int]) -> None:
    assert count_ticks(maximum) == ticks


@given(st.integers(0, 10**12))
def test_ticks_reach_the_highest_count_in_few_steps(maximum: int) -> None:
    ticks = count_ticks(maximum)
    assert ticks[0] == 0
    assert ticks[-1] >= maximum
    assert 2 <= len(ticks) <= 6
    assert len({b - a for a, b in pairwise(ticks)}) == 1
