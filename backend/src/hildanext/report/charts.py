# Small SVG charts for the HTML report: points with error bars joined by lines, and bars. No package needed.
# Entry points: Series, Axes, lines, bars.
# Colours are classes (s0, s1, ...) and currentColor, so one chart serves light and dark pages. From the seventh series
# on they come again, with hollow dots and dotted lines (class `again`).
"""Inline SVG charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 560, 344
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 40, 46
COLOURS = 6
ROOM = 30
"""From the middle of a tick's label to the next one's, pixels."""
PLACES = ((7, -7), (7, 15), (-34, -7), (-34, 15), (7, -21), (-34, 29), (7, 29), (-34, -21))
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Series:
    """A named line of points {x, y, low, high, label}; low, high and label are optional. dashed: a reference."""

    name: str
    points: Sequence[Mapping[str, Any]]
    dashed: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Axes:
    """Titles, and how values are placed: log_x for block sizes; percent shows y in per cent; floor: lowest y shown."""

    x: str
    y: str
    log_x: bool = False
    percent: bool = False
    floor: float | None = None


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low or 1.0) * (self.stop - self.start)


def lines(series: Sequence[Series], axes: Axes) -> str:
    """An SVG element with one line per series, error bars where low and high are given, and a legend."""
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError("lines: no points")
    x, y = _scales(points, axes)
    body = [_grid(x, y, axes, sorted({float(point["x"]) for point in points}))]
    body += [_line(one, index, x, y) for index, one in enumerate(series)]
    return _svg([*body, _notes(series, x, y), _legend(series)], f"{axes.y} against {axes.x}")


def _scales(points: Sequence[Mapping[str, Any]], axes: Axes) -> tuple[_Scale, _Scale]:
    xs = [float(point["x"]) for point in points]
    ys = [
        float(value)
        for point in points
        for value in (point["y"], point.get("low", point["y"]), point.get("high", point["y"]))
    ]
    low, high = (min(ys) if axes.floor is None else axes.floor), max(ys)
    room = 0.08 * (high - low or 1.0)
    top = min(1.0, high + room) if axes.percent and high <= 1 else high + room
    left, right = (min(xs) / 1.15, max(xs) * 1.15) if axes.log_x else _widened(xs)
    low = low if axes.floor is not None else low - room
    return _Scale(left, right, LEFT, WIDTH - RIGHT, axes.log_x), _Scale(low, top, HEIGHT - BOTTOM, TOP)


def _widened(xs: Sequence[float]) -> tuple[float, float]:
    room = max(0.06 * (max(xs) - min(xs)), 0.2)
    return max(0.0, min(xs) - room) if min(xs) >= 0 else min(xs) - room, max(xs) + room


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low or 1.0) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _apart(values: Sequence[float], x: _Scale) -> list[float]:
    """Those of the values, in order, whose labels stand clear of each other."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or x.at(value) - x.at(kept[-1]) >= ROOM:
            kept.append(value)
    return kept


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _grid(x: _Scale, y: _Scale, axes: Axes, xs: Sequence[float]) -> str:
    parts = []
    for value in _ticks(y.low, y.high):
        place, text = y.at(value), f"{100 * value:.3g} %" if axes.percent else _number(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    for value in _apart(xs, x) if axes.log_x else _ticks(x.low, x.high):
        place = x.at(value)
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{_number(value)}</text>'
        )
    middle, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axes.x)}</text>')
    parts.append(
        f'<text class="axis" transform="translate(14 {down}) rotate(-90)" text-anchor="middle">{escape(axes.y)}</text>'
    )
    return "".join(parts)


def _line(one: Series, index: int, x: _Scale, y: _Scale) -> str:
    places = [(x.at(float(point["x"])), y.at(float(point["y"])), point) for point in one.points]
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up, _ in places)
    parts = [f'<polyline class="line{" dash" if one.dashed else ""}" points="{path}"/>'] if one.joined else []
    for across, up, point in places:
        if "low" in point and not one.dashed:
            low, high = y.at(float(point["low"])), y.at(float(point["high"]))
            parts.append(f'<line class="bar" x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if not one.dashed:
            parts.append(
                f'<circle class="dot" cx="{across:.1f}" cy="{up:.1f}" r="4"><title>{_tip(one, point)}</title></circle>'
            )
    return f'<g class="{_class(index)}">{"".join(parts)}</g>'


def _class(index: int) -> str:
    return f"s{index % COLOURS}{' again' if index >= COLOURS else ''}"


def _notes(series: Sequence[Series], x: _Scale, y: _Scale) -> str:
    points = [point for one in series for point in one.points]
    dots = [(x.at(float(point["x"])), y.at(float(point["y"]))) for point in points]
    taken = [(across - 5, up - 5, across + 5, up + 5) for across, up in dots]
    told = {
        (round(across / 12), round(up / 12), str(point.get("label") or ""))
        for (across, up), point in zip(dots, points, strict=True)
    }
    parts = []
    for (across, up), point in zip(dots, points, strict=True):
        label = str(point.get("label") or "")
        place = (round(across / 12), round(up / 12), label)
        spots = [_spot(across + right, up + down, label) for right, down in PLACES] if label and place in told else []
        told.discard(place)
        free = next((spot for spot in spots if not any(_overlap(spot, other) for other in taken)), None)
        if free:
            taken.append(free)
            parts.append(f'<text class="note" x="{free[0]:.1f}" y="{free[3] - 2:.1f}">{escape(label)}</text>')
    return "".join(parts)


def _spot(across: float, up: float, label: str) -> Box:
    width = 7.2 * len(label)
    left = across if across + width < WIDTH else across - width - 14
    return left, up - 10, left + width, up + 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tip(one: Series, point: Mapping[str, Any]) -> str:
    return escape(f"{one.name}: {_number(float(point['x']))}, {_number(float(point['y']))}")


def _legend(series: Sequence[Series]) -> str:
    rows = []
    for index, one in enumerate(series):
        line = f'<line class="line{" dash" if one.dashed else ""}" x1="1" x2="25" y1="5" y2="5"/>'
        dot = "" if one.dashed else '<circle class="dot" cx="13" cy="5" r="4"/>'
        sign = f'<svg width="26" height="10">{line if one.joined else ""}{dot}</svg>'
        rows.append(f'<span class="{_class(index)}">{sign}<b>{escape(one.name)}</b></span>')
    return f"LEGEND{''.join(rows)}"


def bars(values: Sequence[tuple[str, float]], unit: str) -> str:
    """An SVG element with one horizontal bar per (label, value >= 0), its number beside it."""
    if not values:
        raise ValueError("bars: no values")
    top, height, parts = max(value for _, value in values) or 1.0, 34 * len(values) + 8, []
    left = 8 + min(196.0, 7.2 * max(len(label) for label, _ in values))
    width = left + 320
    for index, (label, value) in enumerate(values):
        y, length = 34 * index + 6, max(2.0, value / top * 200)
        parts.append(f'<text class="tick" x="{left - 8:.0f}" y="{y + 16}" text-anchor="end">{escape(label)}</text>')
        parts.append(
            f'<rect class="fill s{index % COLOURS}" x="{left:.0f}" y="{y}" width="{length:.1f}" height="22" rx="4"/>'
        )
        parts.append(
            f'<text class="note" x="{left + 8 + length:.1f}" y="{y + 16}">{_number(value)} {escape(unit)}</text>'
        )
    size = f'viewBox="0 0 {width:.0f} {height}" style="max-width:{1.2 * width:.0f}px"'
    return f'<svg {size} role="img" aria-label="{escape(unit)}">{"".join(parts)}</svg>'


def _svg(parts: Sequence[str], label: str) -> str:
    drawn = "".join(part for part in parts if not part.startswith("LEGEND"))
    legend = "".join(part.removeprefix("LEGEND") for part in parts if part.startswith("LEGEND"))
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{drawn}</svg>'
    return f'{picture}<div class="legend">{legend}</div>'
