"""What a backfill order is: a name and a score for every row; the higher the score, the earlier the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from orchestrator.core.uncertainty import DEFAULT_TEMPERATURE

F32 = npt.NDArray[np.float32]


class Input(StrEnum):
    """What an order must be given beside the number of rows."""

    EMBEDDINGS = "embeddings"
    PROTOTYPES = "prototypes"
    RNG = "rng"


@dataclass(frozen=True)
class Inputs:
    """Everything an order may look at. `embeddings`: (n, d) and `prototypes`: (C, d), float32, L2-normalised."""

    n: int
    embeddings: F32 | None = None
    prototypes: F32 | None = None
    temperature: float = DEFAULT_TEMPERATURE
    rng: np.random.Generator | None = None

    def need_embeddings(self) -> tuple[F32, F32]:
        """Embeddings and prototypes; ValueError when one is missing."""
        if self.embeddings is None or self.prototypes is None:
            raise ValueError("this order needs stored embeddings and prototypes")
        return self.embeddings, self.prototypes

    def need_rng(self) -> np.random.Generator:
        """The generator; ValueError when there is none."""
        if self.rng is None:
            raise ValueError("this order needs a random generator")
        return self.rng


@dataclass(frozen=True)
class Order:
    """One order: `score(inputs)` gives (n,) float32. `description` is one line; `source` says where it comes from."""

    name: str
    description: str
    source: str
    needs: frozenset[Input]
    score: Callable[[Inputs], F32]
