"""Whether a worker is stuck, judged from what the ledger shows of it, and how long to wait before a restart.

A worker whose encoder hangs goes on beating and renewing leases in its other threads: only what it *finishes* tells. What
is compared are sights of the ledger, with times of the observer's own clock: neither clock skew nor a ledger that was
away makes a healthy worker look stuck.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0


@dataclass(frozen=True)
class Sight:
    """What the ledger showed of one worker.

    Attributes:
        finished: its counts of successes and errors, together.
        held: the claims whose lease it keeps alive, each by a key of its own.
        beat: any number that each heartbeat changes.
    """

    finished: int
    held: frozenset[str]
    beat: float


@dataclass(frozen=True)
class Watch:
    """The last sight of a worker, and since when (seconds, the observer's clock) it has neither finished nor beaten."""

    sight: Sight
    unfinished_since: float
    beaten_at: float


def look(watch: Watch | None, sight: Sight, now: float) -> Watch:
    """The watch after one more sight. A claim let go of is progress; one more claim is none."""
    if watch is None:
        return Watch(sight, now, now)
    before = watch.sight
    idle = not before.held or not sight.held
    progress = idle or sight.finished != before.finished or bool(before.held - sight.held)
    return Watch(
        sight,
        now if progress else watch.unfinished_since,
        now if sight.beat != before.beat else watch.beaten_at,
    )


def stuck(watch: Watch, now: float, stuck_s: float, silent_s: float) -> str | None:
    """Why the worker is to be replaced, or None.

    Args:
        stuck_s: longest time that it may hold batches and finish none.
        silent_s: longest time without a heartbeat; several of its intervals.
    """
    unfinished_for_s, silent_for_s = now - watch.unfinished_since, now - watch.beaten_at
    if watch.sight.held and unfinished_for_s >= stuck_s:
        return f"held {len(watch.sight.held)} batches and finished none for {unfinished_for_s:.0f} s"
    if silent_for_s >= silent_s:
        return f"had no heartbeat for {silent_for_s:.0f} s"
    return None


def restart_delay_s(exits: int) -> float:
    """Seconds to wait before the restart after the n-th exit in a row, n from 1: 0.5, 1, 2 … 30."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(max(exits, 1) - 1, 16))
