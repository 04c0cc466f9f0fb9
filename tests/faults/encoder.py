"""The fault suite's encoder: deterministic, next to free, and slow or failing where a test wants it so."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.stubs import F32, NumberedTexts

DIM = 8
POISON = "poison"


class Numbered(NumberedTexts):
    """The vector of "item 57" is that of number 57, to the last bit, whatever else is in the batch.

    Args:
        moved: 0 is the old model; a new one moves every vector by this share.
        pace_s: seconds that one item takes, so that a rollout lasts as long as a test needs.
    """

    def __init__(self, moved: float = 0.0, pace_s: float = 0.0) -> None:
        super().__init__(DIM, moved)
        self._pace_s = pace_s

    def encode(self, prepared: Sequence[str]) -> F32:
        """(n, DIM) float32, L2-normalised.

        Raises:
            ValueError: one of the texts begins with "poison".
        """
        if any(text.startswith(POISON) for text in prepared):
            raise ValueError("this text cannot be embedded")
        if self._pace_s and len(prepared) and prepared[0].startswith("item "):
            time.sleep(self._pace_s * len(prepared))
        return super().encode(prepared)
