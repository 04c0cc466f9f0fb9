"""What passes through the drain pipeline, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import HotrefreshError
from orchestrator.ledger.rows import Claim
from workers.encode import Encoded


@dataclass
class DrainResult:
    """What one drain did. `encoder_busy_s` over `wall_s` is how little the encoder waited.

    Attributes:
        refused: batches that were dropped because their lease, fence or generation was no longer ours.
        failed: batches that failed as a whole and were given back for another attempt.
    """

    batches: int = 0
    items: int = 0
    quarantined: int = 0
    refused: int = 0
    failed: int = 0
    encoder_busy_s: float = 0.0
    wall_s: float = 0.0
    failure: HotrefreshError | None = None


@dataclass
class Work:
    """One batch on its way through the pipeline.

    Attributes:
        places: place in the batch of each prepared item.
        holes: place in the batch → (reason, message).
        encoded: (m, dim) float32, vectors of the prepared items.
        canaries, again: which of the m were encoded a second time, alone, and what that gave: (len(canaries), dim) float32.
    """

    claim: Claim
    rows: npt.NDArray[np.int64]
    prepared: Sequence[Any]
    places: list[int]
    holes: dict[int, tuple[str, str]]
    decode_s: float
    encode_s: float = 0.0
    encoded: npt.NDArray[np.float32] | None = None
    canaries: Sequence[int] = ()
    again: npt.NDArray[np.float32] | None = None

    def take(self, done: Encoded) -> None:
        """Take over what the encoder made; the items are let go, those it could not do become holes."""
        for index, error in done.failed.items():
            self.holes[self.places[index]] = (error.reason, str(error))
        self.places = [place for index, place in enumerate(self.places) if index not in done.failed]
        self.encoded, self.prepared = done.vectors, []
