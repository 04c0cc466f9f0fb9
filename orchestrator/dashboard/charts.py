"""Line charts as plain numbers: scales, ticks and polylines for a template to draw as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 12, 44


@dataclass(frozen=True)
class Series:
    """A line: its name, its points (x, y) in rising x, and which of the styles draws it. `stepped`: y stands until the next x."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    stepped: bool = False


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, with what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: `path` is the attribute of an SVG polyline; `last` the place of its last point."""

    name: str
    style: str
    path: str
    last: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart, ready to draw, and its numbers for those who cannot see it.

    Attributes:
        summary: what it shows, in a sentence.
        table: at some coverages, the value of every series; None where one has none yet.
    """

    title: str
    summary: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    table: tuple[tuple[float, tuple[float | None, ...]], ...]
    whole_numbers: bool = False
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def nice_ticks(low: float, high: float, *, whole_numbers: bool = False, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`; low < high."""
    size = 10 ** math.floor(math.log10((high - low) / about))
    steps = [size * factor for factor in (1, 2, 5, 10)]
    if whole_numbers:
        steps = [step for step in steps if step >= 1] or [1.0]
    step = next((step for step in steps if (high - low) / step <= about), steps[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A number on an axis, with as many decimals as its neighbours need."""
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def value_at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The y of the last point at or before x; None before the first."""
    found = None
    for at, y in points:
        if at > x + 1e-12:
            break
        found = y
    return found


def line_chart(
    title: str,
    summary: str,
    y_label: str,
    series: Sequence[Series],
    *,
    whole_numbers: bool = False,
    ratios: bool = True,
) -> Chart:
    """A chart of values over coverage 0..1. `whole_numbers`: counts, drawn from 0; `ratios`: no axis beyond 0..1."""
    values = [y for each in series for _, y in each.points]
    if whole_numbers:
        ticks = nice_ticks(0, max([*values, 4]), whole_numbers=True)
    else:
        low, high = min(values), max(values)
        margin = max((high - low) * 0.08, 0.005)
        ends = (max(0.0, low - margin), min(1.0, high + margin)) if ratios else (low - margin, high + margin)
        ticks = nice_ticks(*ends)
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    return Chart(
        title=title,
        summary=summary,
        x_label="share of the gallery re-embedded",
        y_label=y_label,
        lines=tuple(_line(each, place) for each in series if each.points),
        x_ticks=tuple(Tick(place(x, low)[0], f"{x:.0%}") for x in (0, 0.25, 0.5, 0.75, 1)),
        y_ticks=tuple(Tick(place(0, y)[1], tick_text(y, ticks[1] - ticks[0])) for y in ticks),
        table=_table(series),
        whole_numbers=whole_numbers,
    )


def _line(series: Series, place: object) -> Line:
    assert callable(place)
    drawn: list[tuple[float, float]] = []
    for x, y in series.points:
        at = place(x, y)
        if series.stepped and drawn:
            drawn.append((at[0], drawn[-1][1]))
        drawn.append(at)
    return Line(series.name, series.style, " ".join(f"{x:g},{y:g}" for x, y in drawn), drawn[-1])


def _table(series: Sequence[Series]) -> tuple[tuple[float, tuple[float | None, ...]], ...]:
    reached = max((x for each in series if each.stepped for x, _ in each.points), default=1.0)
    coverages = [x for x in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1) if x <= reached + 1e-9]
    if reached not in coverages:
        coverages.append(reached)
    return tuple((x, tuple(value_at(each.points, x) for each in series)) for x in coverages)
