"""Plots: places on the axes by hand, labels as text, words that state the numbers."""

import re
import xml.etree.ElementTree as ET

import pytest

from tuneline.core.page.numbers import whole_share
from tuneline.core.page.plot import Axis, Mark, Row, Rule, Series, line_plot, row_plot


def parsed(svg: str) -> ET.Element:
    """Return a plot as an XML parser reads it; a page has it within HTML, without a namespace."""
    return ET.fromstring(svg)  # noqa: S314 (our own text)


def ticks(svg: str, name: str) -> list[str]:
    return [one.text or "" for one in parsed(svg).iter("text") if one.get("class") == name]


def test_a_line_goes_through_its_points() -> None:
    points = [(0.0, 0.0), (5.0, 10.0), (10.0, 5.0)]
    plot = line_plot("Loss", [Series("training", points)], Axis("step"), Axis("nats"))
    (path,) = parsed(plot.svg).iter("path")
    places = [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
    # The box is 360 wide with 46 to the left and 12 to the right; the axes end at 176 and at 26.
    assert places == pytest.approx([46, 176, 197, 26, 348, 101], abs=0.1)


@pytest.mark.parametrize("look", ["line", "marked"])
def test_a_line_of_many_points_keeps_its_extremes_in_few_bytes(look: str) -> None:
    points = [(float(step), 2.0 + step % 7 / 10) for step in range(100_000)]
    points[4321], points[77_777] = (4321.0, 9.0), (77_777.0, 0.0)
    series = Series("training", points, look)  # type: ignore[arg-type]  # one of the four
    plot = line_plot("Loss", [series], Axis("step"), Axis("nats"))
    assert len(plot.svg) < 150_000
    (path,) = parsed(plot.svg).iter("path")
    places = [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
    # The box is 360 wide with 46 to the left and 12 to the right; the axes end at 176 and at 26.
    assert (places[0], places[-2]) == pytest.approx((46, 348), abs=0.1)
    assert max(places[1::2]) == pytest.approx(176, abs=0.1)  # the value 0
    highest = min(range(1, len(places), 2), key=lambda index: places[index])
    assert places[highest - 1] == pytest.approx(46 + 302 * 0.04321, abs=0.2)
    assert places[::2] == sorted(places[::2])


def test_an_axis_has_round_ticks() -> None:
    points = [(0.0, 0.0), (339.0, 8.7)]
    plot = line_plot("Loss", [Series("a", points)], Axis("step"), Axis("nats", limits=(0.0, None)))
    assert ticks(plot.svg, "tick mid") == ["0", "100", "200", "300"]
    assert ticks(plot.svg, "tick end") == ["0", "5", "10"]


def test_a_logarithmic_axis_ends_at_powers_of_ten() -> None:
    points = [(1.0, 0.14), (2.0, 8.7)]
    y = Axis("nats", is_log=True)
    plot = line_plot("Loss", [Series("a", points)], Axis("step"), y)
    assert ticks(plot.svg, "tick end") == ["0.1", "1", "10"]
    (path,) = parsed(plot.svg).iter("path")
    places = [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
    # log10(0.14) lies 0.146 decades above 0.1, of two decades.
    assert places[1] == pytest.approx(176 - (176 - 26) * 0.14613 / 2, abs=0.1)


@pytest.mark.parametrize(
    "points", [[(3.0, 2.0)], [(0.0, 0.0), (0.0, 0.0)], [(1.0, -5.0), (2.0, -5.0)], [(0.0, 1e-12)]]
)
@pytest.mark.parametrize("look", ["line", "step", "dots", "marked"])
def test_few_and_equal_values_are_drawn(points: list[tuple[float, float]], look: str) -> None:
    series = Series("a", points, look)  # type: ignore[arg-type]  # one of the four
    plot = line_plot("Flat", [series], Axis("x"), Axis("y"))
    numbers = [float(n) for n in re.findall(r'(?:x1|y1|cx|cy)="([-\d.]+)"', plot.svg)]
    assert len(numbers) > 4
    assert all(-1 <= number <= 361 for number in numbers)


def test_a_step_is_drawn_before_its_rise() -> None:
    plot = line_plot(
        "CDF", [Series("a", [(0.0, 0.0), (1.0, 1.0)], "step")], Axis("s"), Axis("share")
    )
    (path,) = parsed(plot.svg).iter("path")
    assert path.get("d") == "M46 176H348V26"


def test_a_plot_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        line_plot("Empty", [Series("a", [])], Axis("x"), Axis("y"))
    with pytest.raises(ValueError, match="no rows"):
        row_plot("Empty", [], Axis("x"))


def test_the_text_alternative_states_the_ends_and_the_smallest_value() -> None:
    points = [(1.0, 8.0), (2.0, 0.5), (3.0, 1.0)]
    plot = line_plot("Loss", [Series("training", points)], Axis("step"), Axis("nats"))
    label = parsed(plot.svg).get("aria-label")
    assert label == (
        "Loss. training: from 8.00 at step 1.00 to 1.00 at 3.00; lowest 0.500 at 2.00."
    )
    assert parsed(plot.svg).get("role") == "img"


def test_a_row_shows_its_mark_its_interval_and_its_limit() -> None:
    row = Row("TTFT p90", "60 ms of 1 s", [Mark(0.5)], (0.25, 0.75), [Mark(1.0, 1)])
    axis = Axis("share", tick=whole_share, limits=(0.0, 1.0))
    plot = row_plot("Objectives", [row], axis, legend=("measured", "limit"))
    svg = parsed(plot.svg)
    (mark,) = svg.iter("circle")
    (span,) = (one for one in svg.iter("line") if "span" in one.get("class", ""))
    (limit,) = (one for one in svg.iter("line") if "limit" in one.get("class", ""))
    # The axis goes from 12 to 348.
    assert float(mark.get("cx", "")) == pytest.approx(180)
    assert (span.get("x1"), span.get("x2")) == ("96", "264")
    assert limit.get("x1") == "348"
    assert svg.get("aria-label") == "Objectives. TTFT p90: 60 ms of 1 s."
    assert plot.legend == ("measured", "limit")


@pytest.mark.parametrize(
    ("label", "says", "is_apart"),
    [
        ("merged", "4.3e-06, 1.6e-07; limits 1.0e-03, 1.0e-04", False),
        ("quantized-w4a16", "4.9e-01, 2.0e-02; limits 1.5e+00, 5.0e-02", True),
        ("한국어 상담 분류 모델의 첫 번째 단계", "31.5 ms of 2.00 s", True),
    ],
)
def test_words_that_do_not_fit_next_to_each_other_are_apart(
    label: str, says: str, is_apart: bool
) -> None:
    rows = [Row(label, says, [Mark(1.0)]), Row("next", "1", [Mark(2.0)])]
    svg = parsed(row_plot("Forms", rows, Axis("nats")).svg)
    places = [
        float(one.get("y", "")) for one in svg.iter("text") if "name" in str(one.get("class"))
    ]
    assert len(places) == 4
    assert (places[0] < places[1]) is is_apart
    assert places[1] < places[2] == places[3]


def test_labels_with_markup_are_text() -> None:
    bad = '</svg><script>alert("1")</script>&"'
    plot = line_plot(
        bad, [Series(bad, [(0, 1), (1, 2)])], Axis(bad), Axis(bad), rules=[Rule(0.5, bad)]
    )
    rows = row_plot(bad, [Row(bad, bad, [Mark(1)])], Axis(bad))
    for one in (plot.svg, rows.svg):
        svg = parsed(one)
        assert "<script" not in one
        assert bad in [text.text for text in svg.iter("text")]
        assert bad in (svg.get("aria-label") or "")


def test_a_plot_has_no_colour_of_its_own() -> None:
    plot = line_plot("Loss", [Series("a", [(0, 1), (1, 2)])], Axis("x"), Axis("y"))
    assert not re.findall(r'(?:fill|stroke|style|font)="', plot.svg)
