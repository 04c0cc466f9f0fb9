"""The decision to hold back: order, hysteresis, silence, and what can be neither."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.throttle import Reading, Throttled, decide


def reading(value, reason="lag", **more):
    return Reading(reason, value, limit=10.0, resume_below=9.0, **more)


def test_below_and_at_the_limit_workers_go_on():
    assert decide([reading(9.9), reading(10.0)], None, 100.0) is None
    assert decide([], None, 100.0) is None


def test_above_the_limit_they_hold_back_and_are_told_why():
    assert decide([reading(10.5)], None, 100.0) == Throttled("lag", 10.5, 10.0, since=100.0)


def test_the_first_in_configured_order_is_named_not_the_worst():
    found = decide([reading(1.0, "a"), reading(11.0, "b"), reading(99.0, "c")], None, 100.0)
    assert found is not None
    assert found.reason == "b"


def test_it_goes_on_only_at_the_lower_mark():
    held = decide([reading(11.0)], None, 100.0)
    still = decide([reading(9.5)], held, 105.0)
    assert still == Throttled("lag", 9.5, 10.0, since=100.0)
    assert decide([reading(9.0)], still, 110.0) is None


def test_the_lower_mark_counts_for_the_throttle_that_held_back_only():
    held = decide([reading(1.0, "a"), reading(11.0, "b")], None, 100.0)
    assert decide([reading(9.5, "a"), reading(1.0, "b")], held, 105.0) is None


def test_another_reason_begins_anew():
    held = decide([reading(1.0, "a"), reading(11.0, "b")], None, 100.0)
    found = decide([reading(12.0, "a"), reading(11.0, "b")], held, 105.0)
    assert found is not None
    assert (found.reason, found.since) == ("a", 105.0)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_silent_probe_holds_back_after_patience_not_before(value):
    assert decide([reading(value, failing_for_s=29.9)], None, 100.0) is None
    found = decide([reading(value, failing_for_s=30.0, detail="refused")], None, 100.0)
    assert found == Throttled("lag_unreachable", 30.0, 30.0, 100.0, "refused")
    later = decide([reading(value, failing_for_s=35.0)], found, 105.0)
    assert later is not None
    assert (later.value, later.since) == (35.0, 100.0)


def test_a_probe_that_falls_silent_while_it_holds_back_releases_nobody():
    held = decide([reading(11.0)], None, 100.0)
    assert decide([reading(None, failing_for_s=1.0)], held, 105.0) == held


def test_a_probe_that_answers_again_must_be_below_the_lower_mark():
    silent = decide([reading(None, failing_for_s=31.0)], None, 100.0)
    found = decide([reading(9.5)], silent, 105.0)
    assert found is not None
    assert found.reason == "lag"
    assert decide([reading(8.0)], silent, 105.0) is None


def test_an_endpoint_that_refuses_holds_back_at_once_with_its_status():
    found = decide([reading(None, refused_status=503)], None, 100.0)
    assert found == Throttled("lag_status", 503.0, 200.0, 100.0)


def test_what_does_not_apply_never_holds_back():
    assert decide([reading(None, applicable=False, failing_for_s=999.0)], None, 100.0) is None


def test_infinity_is_above_every_limit():
    found = decide([reading(math.inf)], None, 100.0)
    assert found is not None
    assert found.value == math.inf


def test_a_lower_mark_above_the_limit_does_not_raise_the_limit():
    held = decide([reading(11.0)], None, 100.0)
    odd = replace(reading(10.5), resume_below=20.0)
    assert decide([odd], held, 105.0) is not None


@given(st.lists(st.one_of(st.none(), st.floats(0, 20)), min_size=1, max_size=40))
def test_between_the_marks_nothing_ever_changes(values):
    previous = None
    for number, value in enumerate(values):
        now = decide([reading(value, failing_for_s=1.0)], previous, float(number))
        if value is None or 9.0 < value <= 10.0:
            assert (now is None) == (previous is None)
        else:
            assert (now is not None) == (value > 10.0)
        previous = now
