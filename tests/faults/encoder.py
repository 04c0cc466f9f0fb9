"""The fault suite's encoder: deterministic, next to free, and slow or failing where a test wants it so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from bench.stubs import F32, NumberedTexts
from models.errors import ItemError

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

    def preprocess(self, item: str) -> str:
        """Raises ItemError for a text that begins with "poison"."""
        if item.startswith(POISON):
            raise ItemError("unreadable", "this text cannot be embedded")
        return item

    def encode(self, prepared: Sequence[str]) -> F32:
        """(n, DIM) float32, L2-normalised."""
        if self._pace_s and len(prepared) and prepared[0].startswith("item "):
            time.sleep(self._pace_s * len(prepared))
        return super().encode(prepared)
