"""How numbers, times and states are written: with a unit for people, exactly for machines, and always escaped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.dashboard import words

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOSTILE = '"><script>alert(1)</script>'


def plain(text: str) -> str:
    """With ordinary spaces."""
    return text.replace(words.THIN, " ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0 s"),
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (3 * 86_400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert plain(words.duration(seconds)) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (None, "–"),
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.123, "12.3 %"),
        (0.9999, "99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_only_all_is_called_100_percent_and_only_nothing_0(ratio, text):
    assert plain(words.percent(ratio)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "just now"), (12, "12 s ago"), (185, "3 min ago"), (-185, "in 3 min"), (50 * 3600, "2 d ago")],
)
def test_a_time_is_relative_and_its_title_is_absolute(seconds, text):
    at = NOW - timedelta(seconds=seconds)
    shown = words.moment(at, NOW)
    assert plain(shown).endswith(f">{text}</time>")
    assert f'datetime="{at.isoformat()}"' in shown
    assert f'title="{at:%Y-%m-%d %H:%M:%S} UTC"' in shown


def test_a_time_of_another_zone_is_shown_in_utc():
    from zoneinfo import ZoneInfo

    at = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    assert "2026-11-28 12:00:00 UTC" in words.instant(at)
    assert "2026-11-28 12:00:00 UTC" in words.moment(at, NOW)


def test_a_figure_carries_the_exact_value_beside_the_shown_one():
    shown = words.figure("coverage", 1 / 3, "33.3 %", model="new")
    assert f'data-value="{1 / 3!r}"' in shown
    assert 'data-metric="coverage"' in shown
    assert 'data-model="new"' in shown
    assert ">33.3 %<" in shown


def test_a_figure_that_is_missing_is_no_zero():
    shown = words.figure("eta_s", None)
    assert 'data-value=""' in shown
    assert ">–<" in shown


def test_nothing_of_a_name_becomes_markup():
    for shown in (
        words.figure("items", 3, HOSTILE, model=HOSTILE),
        words.pill(HOSTILE),
        words.pill("paused", HOSTILE),
    ):
        assert "<script" not in shown
        assert '"><' not in shown.replace('"></', "")


def test_a_state_is_a_word_and_not_only_a_colour():
    assert ">rolling back<" in words.pill("rolling_back")
    assert "warn" in words.pill("rolling_back")


def test_a_long_text_is_cut_at_a_word():
    text = "word " * 100
    cut = words.excerpt(text, 52)
    assert cut.endswith("word …")
    assert len(cut) <= 54
    assert words.excerpt(" a\n  b ") == "a b"


def test_a_rate_has_decimals_where_they_say_something():
    assert [words.rate(each) for each in (None, 0.0, 12.54, 99.94, 99.96, 1776.9)] == [
        "–", "0.0", "12.5", "99.9", "100", "1,777",
    ]  # fmt: skip


def test_what_is_null_is_left_out_of_json():
    assert words.plain_json({"reason": None, "state": "paused"}) == '{"state": "paused"}'
    assert words.plain_json({"reason": None}) == words.plain_json(None) == ""
    assert words.plain_json([None, 0]) == "[null, 0]"
