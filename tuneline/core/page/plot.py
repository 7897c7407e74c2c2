"""Plots as inline SVG: lines over an axis, and rows of values with intervals.

`style.css` gives the colours and the fonts, so that a plot follows the reader's colour scheme.
Coordinates are in a box 360 wide, the width of a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal
from unicodedata import east_asian_width

from tuneline.core.page.blocks import Plot
from tuneline.core.page.numbers import digits
from tuneline.core.shorten import shorten

WIDTH = 360
HEIGHT = 212
LEFT, RIGHT, TOP = 46, 12, 26
FLOOR = HEIGHT - 36
"""The place of the axis of x."""
ROW_HEIGHT = 40
LINE_HEIGHT = 15
LETTER = 6.4
"""Mean width of a letter of a name."""
MAX_LETTERS = 50
NUM_COLORS = 4
MAX_TOOLTIPS = 60
"""A line with more points has no tooltip for each."""
MAX_POINTS = 1000
"""A line with more points is drawn by four points in each unit of the width."""

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """Points of one meaning, in the order of their x."""

    label: str
    points: Sequence[Point]
    look: Literal["line", "step", "dots", "marked"] = "line"
    """`marked` is a line with a dot on each point."""


@dataclass(frozen=True)
class Axis:
    """The scale of one direction."""

    label: str
    show: Format = digits
    tick: Format | None = None
    """The text of a tick; a plain number by default."""
    is_log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    """Ends of the axis; None takes the end of the data."""


@dataclass(frozen=True)
class Rule:
    """A vertical line across a plot, such as a limit or a failed request."""

    at: float
    label: str = ""


@dataclass(frozen=True)
class Mark:
    """A value of a row; `series` chooses its colour and its shape."""

    value: float
    series: int = 0


@dataclass(frozen=True)
class Row:
    """One row of a plot of values."""

    label: str
    says: str
    """The row's values in words."""
    marks: Sequence[Mark]
    interval: tuple[float, float] | None = None
    limits: Sequence[Mark] = ()
    """The values that the marks of the same series must keep to."""


@dataclass(frozen=True)
class _Scale:
    """From values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        low, high, value = (
            (math.log10(x) for x in (self.low, self.high, max(value, self.low)))
            if self.is_log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_plot(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    says: str = "",
    rules: Sequence[Rule] = (),
) -> Plot:
    """Return a plot of series over a common axis.

    Args:
        says: The text alternative; by default the ends and the smallest value of each series.
        rules: Vertical lines.

    Raises:
        ValueError: No series has a point.
    """
    shown = [one for one in series if one.points]
    if not shown:
        raise ValueError(f"{title}: no points")
    places = [point[0] for one in shown for point in one.points]
    # The axis of x ends with the data; an empty end would read as a run that stopped.
    x = replace(x, limits=(x.limits[0], max(places) if x.limits[1] is None else x.limits[1]))
    across = _scale(x, places, LEFT, WIDTH - RIGHT)
    up = _scale(y, [p[1] for s in shown for p in s.points], FLOOR, TOP)
    parts = [_text(0, 12, y.label, "axis"), _text(WIDTH - RIGHT, HEIGHT - 4, x.label, "axis end")]
    for value in _ticks(up):
        at = up.at(value)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at, "grid")]
        parts += [_text(LEFT - 6, at + 3.5, _tick_label(value, y), "tick end")]
    for value in _ticks(across):
        at = across.at(value)
        parts += [_line(at, FLOOR, at, FLOOR + 4, "base")]
        parts += [_text(at, FLOOR + 16, _tick_label(value, x), "tick mid")]
    parts.append(_line(LEFT, FLOOR, WIDTH - RIGHT, FLOOR, "base"))
    for rule in rules:
        parts.append(_line(across.at(rule.at), TOP, across.at(rule.at), FLOOR, "rule"))
        if rule.label:
            parts.append(_text(across.at(rule.at) - 4, TOP + 8, rule.label, "tick end"))
    for number, one in enumerate(shown):
        parts.append(_series(one, number % NUM_COLORS + 1, across, up, x, y))
    spoken = says or " ".join(_describe(one, x, y) for one in shown)
    legend = tuple(one.label for one in shown)
    return _plot(title, parts, HEIGHT, spoken, legend)


def row_plot(
    title: str, rows: Sequence[Row], axis: Axis, *, legend: Sequence[str] = (), zero: bool = False
) -> Plot:
    """Return a plot with a row for each entry: its values, its interval and its limits.

    Args:
        legend: The label of each series of marks.
        zero: Whether a line at zero separates better from worse.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError(f"{title}: no rows")
    values = [mark.value for row in rows for mark in (*row.marks, *row.limits)]
    values += [end for row in rows for end in row.interval or ()] + ([0.0] if zero else [])
    across = _scale(axis, values, RIGHT, WIDTH - RIGHT)
    # Words that do not fit next to each other are below each other.
    heights = [
        ROW_HEIGHT + (0 if _width(f"{row.label}  {row.says}") <= WIDTH - 2 * RIGHT else LINE_HEIGHT)
        for row in rows
    ]
    bottom = 6 + sum(heights)
    parts = []
    for value in _ticks(across):
        parts += [_text(across.at(value), bottom + 14, _tick_label(value, axis), "tick mid")]
    parts.append(_text(WIDTH - RIGHT, bottom + 30, axis.label, "axis end"))
    for row, height, top in zip(
        rows, heights, itertools.accumulate(heights, initial=6), strict=False
    ):
        at = top + height - 14
        parts.append(_text(RIGHT, top + 12, shorten(row.label, MAX_LETTERS), "name"))
        parts.append(_text(WIDTH - RIGHT, at - 14, row.says, "name end"))
        # The lines leave out the words above the marks.
        for value in _ticks(across):
            parts.append(_line(across.at(value), at - 9, across.at(value), at + 9, "grid"))
        if zero:
            parts.append(_line(across.at(0.0), at - 9, across.at(0.0), at + 9, "zero"))
        if row.interval is not None:
            low, high = map(across.at, row.interval)
            parts.append(_line(low, at, high, at, "span s1"))
        parts += [
            _line(across.at(m.value), at - 7, across.at(m.value), at + 7, f"limit s{m.series + 1}")
            for m in row.limits
        ]
        parts += [_mark(across.at(m.value), at, m.series) for m in row.marks]
    spoken = " ".join(f"{row.label}: {row.says}." for row in rows)
    return _plot(title, parts, bottom + 36, spoken, tuple(legend))


def _width(text: str) -> float:
    """Return about how wide a name is; letters of East Asia are twice as wide."""
    return sum(2 * LETTER if east_asian_width(one) in "WF" else LETTER for one in text)


def _plot(title: str, parts: list[str], height: float, says: str, legend: tuple[str, ...]) -> Plot:
    label = escape(f"{title}. {says}", quote=True)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
    return Plot(title, svg, says, legend)


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    low = min(values) if axis.limits[0] is None else axis.limits[0]
    high = max(values) if axis.limits[1] is None else axis.limits[1]
    if axis.is_log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        return _Scale(low, high if high > low else 10 * low, start, end, True)
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if axis.limits[0] is None else (low, low + 1.0)
    step = _step(low, high)
    low = low if axis.limits[0] is not None else math.floor(low / step + 1e-9) * step
    high = high if axis.limits[1] is not None else math.ceil(high / step - 1e-9) * step
    return _Scale(low, high, start, end, False)


def _step(low: float, high: float) -> float:
    """Return the distance of ticks: 1, 2 or 5 times a power of ten, about four on an axis."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)


def _ticks(scale: _Scale) -> list[float]:
    if scale.is_log:
        first, last = round(math.log10(scale.low)), round(math.log10(scale.high))
        stride = max(1, math.ceil((last - first) / 5))
        return [10.0**power for power in range(first, last + 1, stride)]
    step = _step(scale.low, scale.high)
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _tick_label(value: float, axis: Axis) -> str:
    if axis.tick is not None:
        return axis.tick(value)
    if axis.is_log and not 1e-4 < value < 1e4:
        power = str(round(math.log10(value)))
        return "10" + power.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,.6g}".replace("-", "−")


def _series(one: Series, color: int, across: _Scale, up: _Scale, x: Axis, y: Axis) -> str:
    places = [(across.at(a), up.at(b)) for a, b in one.points]
    if one.look in ("line", "marked"):
        places = _thinned(places)
    parts = []
    if one.look != "dots":
        path = f"M{_n(places[0][0])} {_n(places[0][1])}"
        for px, py in places[1:]:
            path += f"H{_n(px)}V{_n(py)}" if one.look == "step" else f"L{_n(px)} {_n(py)}"
        parts.append(f'<path class="s{color}" d="{path}"/>')
    if one.look in ("dots", "marked"):
        radius = 1.8 if one.look == "dots" else 3
        parts += [
            f'<circle class="s{color}" cx="{_n(px)}" cy="{_n(py)}" r="{radius}"/>'
            for px, py in places
        ]
    if len(places) <= MAX_TOOLTIPS and one.look != "dots":
        parts += [
            f'<circle class="hover" cx="{_n(px)}" cy="{_n(py)}" r="7"><title>'
            f"{escape(f'{one.label}: {y.show(b)} at {x.show(a)}')}</title></circle>"
            for (px, py), (a, b) in zip(places, one.points, strict=True)
        ]
    return "".join(parts)


def _thinned(places: list[Point]) -> list[Point]:
    """Return the places of a line that a reader can tell apart, with every extreme value."""
    if len(places) <= MAX_POINTS:
        return places
    found: list[Point] = []
    for _, group in itertools.groupby(places, key=lambda place: round(place[0])):
        inside = list(group)
        order = sorted(range(len(inside)), key=lambda index: inside[index][1])
        found += [inside[index] for index in sorted({0, order[0], order[-1], len(inside) - 1})]
    return found


def _describe(one: Series, x: Axis, y: Axis) -> str:
    """Return the ends and the smallest value of a series in words."""
    (first_x, first), (last_x, last) = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return f"{one.label}: {y.show(first)} at {x.label} {x.show(first_x)}."
    low_x, low = min(one.points, key=lambda point: point[1])
    return (
        f"{one.label}: from {y.show(first)} at {x.label} {x.show(first_x)} to {y.show(last)} at "
        f"{x.show(last_x)}; lowest {y.show(low)} at {x.show(low_x)}."
    )


def _mark(x: float, y: float, series: int) -> str:
    """Return a mark whose shape differs by series, so that colour is not needed to read it."""
    name = f'class="mark s{series % NUM_COLORS + 1}"'
    if series % 2:
        return (
            f'<rect {name} x="{_n(x - 3.6)}" y="{_n(y - 3.6)}" width="7.2" height="7.2" '
            f'transform="rotate(45 {_n(x)} {_n(y)})"/>'
        )
    return f'<circle {name} cx="{_n(x)}" cy="{_n(y)}" r="4.2"/>'


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _text(x: float, y: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
