"""Charts: round ticks around the values, points where they belong, and the same numbers in words."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.dashboard.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    nice_ticks,
    tick_text,
    value_at,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1.0]),
        (0.83, 1.0, [0.8, 0.85, 0.9, 0.95, 1.0]),
        (0.8999, 0.9, [0.89988, 0.8999, 0.89992, 0.89994, 0.89996, 0.89998, 0.9]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
    if len(expected) < 7:
        assert ticks == pytest.approx(expected)


@pytest.mark.parametrize("high", [4, 9, 13, 999, 123_456])
def test_counts_have_whole_ticks(high):
    ticks = nice_ticks(0, high, whole_numbers=True)
    assert all(tick == int(tick) for tick in ticks)
    assert ticks[0] == 0
    assert ticks[-1] >= high
    assert len(ticks) <= 6


def test_a_tick_has_the_decimals_that_its_neighbours_need():
    assert [tick_text(1, 0.05), tick_text(1, 0.5), tick_text(20, 10), tick_text(0.125, 0.001)] == [
        "1.00", "1.0", "20", "0.125",
    ]  # fmt: skip


def test_a_step_stands_until_the_next_point():
    points = [(0.0, 3.0), (0.5, 1.0)]
    assert [value_at(points, x) for x in (0, 0.49, 0.5, 1)] == [3, 3, 1, 1]
    assert value_at([(0.2, 1.0)], 0.1) is None


def test_points_are_placed_between_the_axes():
    chart = line_chart("t", "s", "y", [Series("a", "measured", [(0.0, 0.5), (1.0, 1.0)])])
    (first, last) = [tuple(map(float, point.split(","))) for point in chart.lines[0].path.split()]
    assert first[0] == LEFT
    assert last == (WIDTH - RIGHT, TOP)
    assert first[1] <= HEIGHT - BOTTOM
    assert chart.lines[0].last == last


def test_a_stepped_line_has_corners():
    chart = line_chart("t", "s", "y", [Series("a", "measured", [(0.0, 0.0), (0.5, 1.0)], stepped=True)])
    assert len(chart.lines[0].path.split()) == 3


def test_values_that_are_all_equal_are_drawn_too():
    for whole_numbers in (False, True):
        chart = line_chart("t", "s", "y", [Series("a", "m", [(0.0, 1.0)])], whole_numbers=whole_numbers)
        assert TOP <= chart.lines[0].last[1] <= HEIGHT - BOTTOM


def test_the_table_ends_where_the_measurement_does():
    chart = line_chart(
        "t", "s", "y",
        [
            Series("measured", "measured", [(0.0, 0.5), (0.3, 0.75)], stepped=True),
            Series("random", "random", [(0.0, 0.5), (1.0, 1.0)]),
        ],
    )  # fmt: skip
    assert chart.table == ((0, (0.5, 0.5)), (0.1, (0.5, 0.5)), (0.25, (0.5, 0.5)), (0.3, (0.75, 0.5)))
