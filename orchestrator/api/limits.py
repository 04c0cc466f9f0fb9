"""How much is taken: requests at once, and requests of one client a second. All of one event loop, so without a lock."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

# Clients that are remembered; the one that was away longest is forgotten, and begins with a full bucket.
MOST_CLIENTS = 10_000


class Rate:
    """A token bucket for each client: `burst` requests at once, then `per_s` a second.

    Args:
        per_s: 0 limits nothing.
        clock: seconds, never going back.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        # Client → what is left, and when that was so.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> int:
        """0, and the request is counted; or in how many whole seconds the client may ask again."""
        if self._per_s <= 0:
            return 0
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._per_s)
        taken = left >= 1
        self._buckets[client] = (left - 1 if taken else left, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if taken else max(1, math.ceil((1 - left) / self._per_s))


class AtOnce:
    """At most so many requests at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    def enter(self) -> bool:
        """Whether there is room; `leave` gives it back."""
        if self._now >= self._most:
            return False
        self._now += 1
        return True

    def leave(self) -> None:
        """A request is over."""
        self._now -= 1
