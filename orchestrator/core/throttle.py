"""Whether a rollout's workers hold back: decided from what probes read, with hysteresis, and safe when a probe is silent.

A probe (`orchestrator/throttles`) measures; this module judges. It knows no clock: moments are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

RESUME_RATIO = 0.9
UNREACHABLE, STATUS = "_unreachable", "_status"
STATUS_OK = 200


@dataclass(frozen=True)
class Reading:
    """What is known of one configured throttle.

    Attributes:
        reason: the throttle's name.
        value: the last number measured, in the unit of `limit`; None or NaN: no answer.
        limit: above it workers hold back.
        resume_below: once held back, they go on when the value is at or below this; never above `limit`.
        failing_for_s: seconds since the probe stopped answering; 0 while it answers.
        patience_s: how long it may be silent before that holds workers back.
        applicable: False where there is nothing to measure (no GPU; no interval yet): such a reading never throttles.
        refused_status: the HTTP status, other than 200, by which an endpoint told us to hold back.
        detail: why the probe did not answer, in one sentence.
    """

    reason: str
    value: float | None
    limit: float
    resume_below: float
    failing_for_s: float = 0.0
    patience_s: float = 30.0
    applicable: bool = True
    refused_status: int | None = None
    detail: str = ""

    @property
    def answered(self) -> bool:
        """Whether there is a number to judge."""
        return self.value is not None and not math.isnan(self.value)


@dataclass(frozen=True)
class Throttled:
    """Workers hold back.

    Attributes:
        reason: the throttle's name; `<name>_unreachable` when its probe is silent (value: seconds of silence, limit:
            the patience); `<name>_status` when an endpoint refused (value: the HTTP status, limit: 200).
        since: when this reason began, seconds since the epoch.
        detail: one sentence more, where there is one.
    """

    reason: str
    value: float
    limit: float
    since: float
    detail: str = ""


def decide(readings: Sequence[Reading], previous: Throttled | None, now: float) -> Throttled | None:
    """The first reading, in configured order, that holds workers back; None: go on.

    Args:
        previous: the decision before this one; it gives hysteresis and `since`.
        now: seconds since the epoch.
    """
    for reading in readings:
        found = _judge(reading, previous, now)
        if found is not None:
            same = previous is not None and previous.reason == found.reason
            return replace(found, since=previous.since) if same and previous is not None else found
    return None


def _judge(reading: Reading, previous: Throttled | None, now: float) -> Throttled | None:
    if not reading.applicable:
        return None
    if reading.refused_status is not None:
        status = float(reading.refused_status)
        return Throttled(reading.reason + STATUS, status, STATUS_OK, now, reading.detail)
    held = previous is not None and previous.reason in _reasons(reading)
    if not reading.answered:
        return _judge_silence(reading, previous if held else None, now)
    assert reading.value is not None
    bound = min(reading.resume_below, reading.limit) if held else reading.limit
    return Throttled(reading.reason, reading.value, reading.limit, now) if reading.value > bound else None


def _judge_silence(reading: Reading, held: Throttled | None, now: float) -> Throttled | None:
    """A silent probe holds workers back once patience is over; one that held them back before keeps doing so."""
    if reading.failing_for_s >= reading.patience_s:
        reason = reading.reason + UNREACHABLE
        return Throttled(reason, reading.failing_for_s, reading.patience_s, now, reading.detail)
    return held


def _reasons(reading: Reading) -> tuple[str, str, str]:
    return reading.reason, reading.reason + UNREACHABLE, reading.reason + STATUS
