"""Which of two systems answers a request: a share of all keys, always the same keys, and more of them as the share grows."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

BUCKETS = 10_000
"""A share is told to a hundredth of a percent."""

OLD, NEW = "old", "new"

STICKY_HEADER, MAX_STICKY = "X-Hotrefresh-Sticky", 200
"""The header by which a caller wants the same system each time, and how many bytes it may have."""


def bucket(key: str, salt: int) -> int:
    """0..BUCKETS - 1, the same for a key and a salt on every machine and in every release (BLAKE2b of both).

    Args:
        salt: the rollout's id, so that nobody is among the first of every rollout.
    """
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") % BUCKETS


def in_share(place: int, percent: float) -> bool:
    """Whether a bucket is among the first `percent` of all: what is in stays in when the percentage grows."""
    return place < round(percent * BUCKETS / 100)


@dataclass(frozen=True)
class Split:
    """How a rollout's traffic is divided.

    Attributes:
        canary: percent of the requests that the new system answers, 0..100; at 100 the canary is over.
        shadow: part of the requests that both systems answer, 0..1.
    """

    canary: float
    shadow: float

    def __post_init__(self) -> None:
        if not 0 <= self.canary <= 100:
            raise ValueError(f"a canary is 0 to 100 percent, not {self.canary}")
        if not 0 <= self.shadow <= 1:
            raise ValueError(f"a shadow is a part from 0 to 1, not {self.shadow}")

    @property
    def over(self) -> bool:
        """Whether the new system answers everything and the old one is not needed any more."""
        return self.canary >= 100

    def system(self, place: int) -> str:
        """OLD or NEW, for a bucket."""
        return NEW if in_share(place, self.canary) else OLD


WHOLE = Split(100.0, 0.0)
"""A rollout of which nothing was said: the new system answers everything from its deployment on."""
