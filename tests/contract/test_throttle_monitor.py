"""The monitor: at each probe's interval, never held up, safe when a probe is silent."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from orchestrator.throttles.monitor import ANSWER_WITHIN_S, Clock, ThrottleMonitor
from tests.contract import throttle_parts
from tests.contract.throttle_parts import HOURS, HTTP, NOON

endpoint, nowhere = throttle_parts.endpoint, throttle_parts.nowhere


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0
        self.clock = Clock(lambda: self.at, lambda: NOON + timedelta(seconds=self.at))


@pytest.fixture
def hand():
    return Hand()


def test_the_monitor_holds_back_names_the_reason_and_goes_on(endpoint, nowhere, hand):
    endpoint.body = b"6"
    monitor = ThrottleMonitor([HTTP | {"url": endpoint.url}], nowhere, hand.clock)
    held = monitor.poll()
    assert (held.reason, held.value, held.limit, held.since) == ("http", 6.0, 5.0, NOON.timestamp())
    endpoint.body = b"4.8"
    hand.at = 5.0
    assert monitor.poll().value == 4.8
    endpoint.body = b"4"
    hand.at = 10.0
    assert monitor.poll() is None


def test_the_monitor_reads_at_the_probes_interval_however_often_it_is_asked(endpoint, nowhere, hand):
    monitor = ThrottleMonitor([HTTP | {"url": endpoint.url, "every_s": 7}], nowhere, hand.clock)
    for second in range(22):
        hand.at = float(second)
        monitor.poll()
    assert endpoint.asked == 4


def test_the_monitor_is_not_held_up_by_a_probe_that_hangs(endpoint, nowhere, hand, monkeypatch):
    """The probe's own time-out is taken away: the monitor is the second line."""
    let_go = threading.Event()
    monitor = ThrottleMonitor([HTTP | {"url": endpoint.url, "patience_s": 10}], nowhere, hand.clock)
    probe_ = monitor._watched[0].throttle.probe
    monkeypatch.setattr(probe_, "read", lambda surroundings: let_go.wait(60) and 1.0)
    outcomes = []
    try:
        for second in range(13):
            hand.at = float(second)
            begun = time.monotonic()
            outcomes.append(monitor.poll())
            assert time.monotonic() - begun < ANSWER_WITHIN_S + 0.3
        hanging = [thread for thread in threading.enumerate() if thread.name == "throttle http"]
        assert len(hanging) == 1
        assert hanging[0].daemon
    finally:
        let_go.set()
    assert outcomes[:10] == [None] * 10
    assert outcomes[10].reason == "http_unreachable"
    assert "did not answer" in outcomes[10].detail


def test_the_monitor_fails_safe_and_recovers(endpoint, nowhere, hand):
    monitor = ThrottleMonitor([HTTP | {"url": endpoint.url}], nowhere, hand.clock)
    assert monitor.poll() is None
    endpoint.body = b"nan"
    seen = []
    for second in (5, 10, 34, 35, 40):
        hand.at = float(second)
        seen.append(monitor.poll())
    assert seen[:3] == [None] * 3
    assert (seen[3].reason, seen[3].value, seen[3].limit) == ("http_unreachable", 30.0, 30.0)
    assert seen[4].since == seen[3].since
    endpoint.body = b"1"
    hand.at = 45.0
    assert monitor.poll() is None


def test_the_monitor_holds_back_at_once_when_an_endpoint_refuses(endpoint, nowhere, hand):
    endpoint.status = 503
    found = ThrottleMonitor([HTTP | {"url": endpoint.url}], nowhere, hand.clock).poll()
    assert (found.reason, found.value) == ("http_status", 503.0)


def test_the_monitor_without_throttles_never_holds_back(nowhere):
    assert ThrottleMonitor([], nowhere).poll() is None


def test_a_probe_that_breaks_is_a_silent_one(nowhere, hand, monkeypatch):
    monitor = ThrottleMonitor([HOURS | {"patience_s": 1}], nowhere, hand.clock)
    monkeypatch.setattr(monitor._watched[0].throttle.probe, "read", lambda surroundings: 1 // 0)
    monitor.poll()
    hand.at = 2.0
    assert monitor.poll().detail == "the probe broke: ZeroDivisionError"
