"""Charts as SVG inside a page: bars of latencies, accuracy against latency, signal to noise over the layers.

Every number of a chart stands in a table beside it too; a chart only shows which of them are large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from vitdeploy.render.markup import make
from vitdeploy.render.tables import format_number

WIDTH, HEIGHT = 360, 220
"""Of a chart, in its own units: those of a phone's screen."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 16, 34
_FAR = 8
"""Ratio of two latencies from which they are shown by ratios."""


class _Axis(NamedTuple):
    """What stands along a side.

    Attributes:
        scale: From its numbers to the side.
        name: What they are, with their unit.
        numbered: Whether ticks are written.
    """

    scale: _Scale
    name: str
    numbered: bool = True


class Bar(NamedTuple):
    """One latency.

    Attributes:
        name: Of the subject.
        p50: In ms.
        p90: Likewise.
        p99: Likewise.
        text: The value as it is written.
    """

    name: str
    p50: float
    p90: float
    p99: float
    text: str


class Dot(NamedTuple):
    """One variant.

    Attributes:
        name: Of it.
        x: What it costs: less is better.
        y: What it is worth: more is better.
    """

    name: str
    x: float
    y: float


def draw_bars(bars: Sequence[Bar]) -> Element:
    """A bar up to the median each, and a thin line on to p90 and p99; all on one scale from 0."""
    widest = max((bar.p99 for bar in bars if math.isfinite(bar.p99)), default=0.0) or 1.0
    rows = []
    for bar in bars:
        p50, p90, p99 = (100 * number / widest if math.isfinite(number) else 0.0 for number in bar[1:4])
        picture = make(
            "svg",
            _box(p50, p99, 4.5, 1, "soft"),
            _box(0, p50, 1, 8, "mark"),
            _box(p90 - 0.3, p90 + 0.3, 2, 6, "soft"),
            _box(p99 - 0.3, p99 + 0.3, 2, 6, "soft"),
            viewBox="0 0 100 10",
            preserveAspectRatio="none",
            aria_hidden="true",
        )
        row = (make("span", bar.name, class_="name"), picture, make("span", bar.text, class_="value"))
        rows.append(make("div", *row, class_="row"))
    return make("div", *rows, class_="bars")


def find_front(dots: Sequence[Dot]) -> list[int]:
    """The variants than which none is both cheaper and better, cheapest first: of equal ones the first.

    Source: V. Pareto (1906), Manuale di economia politica; what is called his front.
    """
    front: list[int] = []
    for place in sorted(range(len(dots)), key=lambda place: (dots[place].x, -dots[place].y, place)):
        if not front or dots[place].y > dots[front[-1]].y:
            front.append(place)
    return front


def draw_front(dots: Sequence[Dot], across: str, up: str) -> Element:
    """Variants by number, and the line of those that none beats.

    Args:
        dots: At least one, of finite numbers.
        across: What ``x`` is, with its unit.
        up: What ``y`` is.
    """
    xs, ys = _Scale.fit_ratios([dot.x for dot in dots]), _Scale.fit([dot.y for dot in dots])
    places = [
        (_LEFT + xs.share(dot.x) * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - ys.share(dot.y) * (HEIGHT - _TOP - _BOTTOM))
        for dot in dots
    ]
    front = find_front(dots)
    corners = [places[front[0]]]
    for place in front[1:]:  # to the next one at no better accuracy: a stair
        corners += [(places[place][0], corners[-1][1]), places[place]]
    line = make("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), class_="front")
    marks = []
    for number, (dot, (x, y)) in enumerate(zip(dots, places, strict=True), 1):
        tip = make("title", f"{dot.name}: {format_number(dot.x)}, {format_number(dot.y)}")
        marks.append(make("circle", tip, cx=f"{x:.1f}", cy=f"{y:.1f}", r="4", class_="mark"))
        left = x > WIDTH - 40
        marks.append(_write(x - 8 if left else x + 8, y - 5, str(number), "", "end" if left else "start"))
    names = ", ".join(f"{number} {dot.name}" for number, dot in enumerate(dots, 1))
    return _frame([line, *marks], (_Axis(xs, across), _Axis(ys, up)), f"{up} against {across}: {names}")


def draw_profile(values: Sequence[tuple[str, float]], up: str) -> Element:
    """A number over the layers, in their order; one that is not finite stands at the foot, in another colour."""
    finite = [value for _, value in values if math.isfinite(value)]
    xs, ys = _Scale(0.0, max(1.0, len(values) - 1.0)), _Scale.fit([0.0, *finite])
    points, marks = [], []
    for place, (name, value) in enumerate(values):
        x = _LEFT + xs.share(place) * (WIDTH - _LEFT - _RIGHT)
        known = math.isfinite(value)
        y = HEIGHT - _BOTTOM - (ys.share(value) if known else 0.0) * (HEIGHT - _TOP - _BOTTOM)
        points += [f"{x:.1f},{y:.1f}"] if known else []
        lowest = known and value == min(finite)
        tip = make("title", f"{name}: {format_number(value)} dB")
        size = "4" if lowest or not known else "2"
        marks.append(make("circle", tip, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, class_="mark" if known else "far"))
    line = make("polyline", points=" ".join(points), class_="line")
    low = min(values, key=lambda each: each[1] if math.isfinite(each[1]) else -math.inf)
    told = f"{up} over {len(values)} layers; the lowest: {low[0]}"
    return _frame([line, *marks], (_Axis(xs, "layers, in their order", numbered=False), _Axis(ys, up)), told)


class _Scale(NamedTuple):
    """From numbers to [0, 1].

    Attributes:
        low: What is 0.
        high: What is 1.
        logarithmic: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def fit(cls, numbers: Sequence[float]) -> _Scale:
        """One that holds all of them, with some room."""
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low if low == 0 else low - room, high + room)

    @classmethod
    def fit_ratios(cls, numbers: Sequence[float]) -> _Scale:
        """One for positive numbers: from 0, or by ratios where they are far apart."""
        low, high = min(numbers), max(numbers)
        return cls(low / 1.5, high * 1.5, logarithmic=True) if 0 < low < high / _FAR else cls.fit([0.0, *numbers])

    def share(self, number: float) -> float:
        """Where a number lies."""
        if self.logarithmic:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def list_ticks(self) -> list[float]:
        """Round numbers within it, a few."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers]
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(each * power for each in (5, 2, 1, 0.5) if (self.high - self.low) / (each * power) >= 2)
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


def _frame(inside: Sequence[Element], axes: tuple[_Axis, _Axis], told: str) -> Element:
    """A chart with its axes, the first across."""
    foot, end = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    across, up = axes
    lines = [
        make("line", x1=str(_LEFT), x2=str(end), y1=str(foot), y2=str(foot), class_="axis"),
        make("line", x1=str(_LEFT), x2=str(_LEFT), y1=str(_TOP), y2=str(foot), class_="axis"),
    ]
    for tick in up.scale.list_ticks():
        lines.append(_write(_LEFT - 4, foot - up.scale.share(tick) * (foot - _TOP) + 3, f"{tick:.6g}", "dim", "end"))
    for tick in across.scale.list_ticks() if across.numbered else ():
        lines.append(_write(_LEFT + across.scale.share(tick) * (end - _LEFT), foot + 13, f"{tick:.6g}", "dim", "middle"))
    names = [
        _write((_LEFT + end) / 2, HEIGHT - 6, across.name, "dim", "middle"),
        _write(_LEFT + 4, _TOP - 2, up.name, "dim", "start"),
    ]
    content = (make("title", told), *lines, *inside, *names)
    return make("div", make("svg", *content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told), class_="chart")


def _box(start: float, end: float, top: float, height: float, kind: str) -> Element:
    return make(
        "rect",
        x=f"{max(0.0, start):.2f}",
        y=f"{top:g}",
        width=f"{max(0.0, end - max(0.0, start)):.2f}",
        height=f"{height:g}",
        class_=kind,
    )


def _write(x: float, y: float, text: str, kind: str, anchor: str) -> Element:
    return make("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **({"class_": kind} if kind else {}))
