"""Reads every configured throttle at its own interval and says whether workers hold back.

Each probe is read in a thread of its own, one read at a time; nobody waits for a read longer than `ANSWER_WITHIN_S`, so a
probe that hangs stalls no worker: it counts as silent, and its thread, a daemon, cannot hold up the end of the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from orchestrator.core.throttle import Reading, Throttled, decide
from orchestrator.throttles import ProbeError, ProbeRefused, Surroundings, Throttle, parse_throttles
from orchestrator.throttles.base import TIMEOUT_S

# A read that takes longer counts as no answer; the probes' own time-outs come first.
DEADLINE_S = 2 * TIMEOUT_S + 0.5
# How long `poll` waits for reads that it has just begun: healthy probes answer within the same poll.
ANSWER_WITHIN_S = 0.25


@dataclass(frozen=True)
class Clock:
    """Time, handed in: `monotonic` (seconds) for intervals, `now` (aware of its zone) for what is shown and for hours."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass
class _Read:
    """One read under way or done; its thread writes the outcome, then sets `done`."""

    begun: float
    done: threading.Event = field(default_factory=threading.Event)
    value: float | None = None
    failure: str = ""
    refused_status: int | None = None

    def run(self, throttle: Throttle, surroundings: Surroundings) -> None:
        try:
            self.value = throttle.probe.read(surroundings)
        except ProbeRefused as error:
            self.refused_status, self.failure = error.status, str(error)
        except ProbeError as error:
            self.failure = str(error)
        except Exception as error:  # noqa: BLE001 - a probe that breaks is one that does not answer
            self.failure = f"the probe broke: {type(error).__name__}"
        finally:
            self.done.set()


@dataclass
class _Watched:
    """A throttle, its read under way, and its last outcome."""

    throttle: Throttle
    due: float
    under_way: _Read | None = None
    last: _Read | None = None
    failing_since: float | None = None


class ThrottleMonitor:
    """The throttles of one rollout in one worker. `poll` is for one thread; it never raises for a probe's fault."""

    def __init__(
        self, config: Sequence[Mapping[str, Any]], engine: Engine, clock: Clock | None = None
    ) -> None:
        """Raises UsageError for a table that cannot be used (submit has checked it before)."""
        self._clock = clock or Clock()
        self._engine = engine
        now = self._clock.monotonic()
        self._watched = [_Watched(throttle, due=now) for throttle in parse_throttles(config)]
        self._previous: Throttled | None = None

    def poll(self) -> Throttled | None:
        """Begin the reads that are due, take in those that ended, and decide. Takes `ANSWER_WITHIN_S` at most."""
        now = self._clock.monotonic()
        begun = [read for watched in self._watched if (read := self._begin(watched, now)) is not None]
        give_up = time.monotonic() + ANSWER_WITHIN_S
        for read in begun:
            read.done.wait(max(0.0, give_up - time.monotonic()))
        for watched in self._watched:
            _take_in(watched, now)
        readings = [_reading(watched, now) for watched in self._watched]
        self._previous = decide(readings, self._previous, self._clock.now().timestamp())
        return self._previous

    def _begin(self, watched: _Watched, now: float) -> _Read | None:
        if watched.under_way is not None or now < watched.due:
            return None
        watched.due = now + watched.throttle.every_s
        watched.under_way = read = _Read(now)
        surroundings = Surroundings(self._engine, self._clock.now())
        name = f"throttle {watched.throttle.name}"
        threading.Thread(
            target=read.run, args=(watched.throttle, surroundings), name=name, daemon=True
        ).start()
        return read


def _take_in(watched: _Watched, now: float) -> None:
    """Note the outcome of a read that ended, or that has taken too long to be worth waiting for."""
    read = watched.under_way
    if read is None:
        return
    if read.done.is_set():
        watched.under_way = None
        late = now - read.begun > DEADLINE_S  # what it says is old; the next read will be fresh
    elif now - read.begun > DEADLINE_S:
        late = True
    else:
        return
    if late:
        read = _Read(read.begun, failure=f"the probe did not answer within {DEADLINE_S:g} s")
    watched.last = read
    # A refusal is an answer; a value that is not a number is none.
    failed = bool(read.failure) and read.refused_status is None
    failed = failed or (read.value is not None and math.isnan(read.value))
    if not failed:
        watched.failing_since = None
    elif watched.failing_since is None:
        watched.failing_since = read.begun


def _reading(watched: _Watched, now: float) -> Reading:
    throttle, last = watched.throttle, watched.last
    failing_for_s = 0.0 if watched.failing_since is None else now - watched.failing_since
    return Reading(
        throttle.name,
        None if last is None or last.failure else last.value,
        throttle.limit,
        throttle.resume_below,
        failing_for_s,
        throttle.patience_s,
        applicable=not (last is not None and not last.failure and last.value is None),
        refused_status=None if last is None else last.refused_status,
        detail="" if last is None else last.failure or "the probe gave no number",
    )
