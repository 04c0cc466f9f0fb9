"""The fault suite's encoder: deterministic, next to free, and slow or failing where a test wants it so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from bench.stubs import F32, NumberedTexts

DIM = 8
POISON = "poison"
# Seconds that one item takes, so that a rollout lasts as long as a test needs. Only workers get it: a test that
# re-embeds everything to compare is not slowed down.
PACE = "FAULT_SUITE_PACE_S"


class Numbered(NumberedTexts):
    """The vector of "item 57" is that of number 57, to the last bit, whatever else is in the batch.

    Args:
        moved: 0 is the old model; a new one moves every vector by this share.
    """

    def __init__(self, moved: float = 0.0) -> None:
        super().__init__(DIM, moved)
        self._pace_s = float(os.environ.get(PACE, "0"))

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
