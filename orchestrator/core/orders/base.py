"""What a backfill order is: a name and a score for every row; the higher the score, the earlier the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.core.uncertainty import DEFAULT_TEMPERATURE

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
T = TypeVar("T")

DEFAULT_NEIGHBOURS = 10
"""k of the k nearest neighbours."""

_CPU = torch.device("cpu")


class Input(StrEnum):
    """What an order must be given beside the number of rows."""

    EMBEDDINGS = "embeddings"
    PROTOTYPES = "prototypes"
    RNG = "rng"
    LOG_VARIANCE = "log_variance"
    LABELS = "labels"
    DEMAND = "demand"
    BASE_SCORES = "base_scores"
    NEW_EMBEDDINGS = "new_embeddings"
    EXPECTED_FLIPS = "expected_flips"


@dataclass(frozen=True)
class Inputs:
    """Everything an order may look at.

    Attributes:
        n: rows.
        embeddings: (n, d) float32, L2-normalised: what is stored now, adapted where there is an adapter.
        prototypes: (C, d) float32, L2-normalised.
        temperature: T of the softmax over prototypes.
        rng: the generator of the random order.
        log_variance: (n,) float32, what an adapter predicts for each row.
        labels: (n,) int64, class or cluster of each row; negative: unlabelled.
        demand: (n,) float32, 0 or more: how often each row was retrieved.
        base_scores: (n,) float32, 0 or more: the scores of the order that demand weights.
        new_embeddings: (n, d) float32, L2-normalised, by the new model: known in a simulation only.
        expected_flips: (n,) float32, 0 or more: bits of each row's code that noise would flip.
        neighbours: k of the k nearest neighbours.
        device: where matrix products are computed.
    """

    n: int
    embeddings: F32 | None = None
    prototypes: F32 | None = None
    temperature: float = DEFAULT_TEMPERATURE
    rng: np.random.Generator | None = None
    log_variance: F32 | None = None
    labels: I64 | None = None
    demand: F32 | None = None
    base_scores: F32 | None = None
    new_embeddings: F32 | None = None
    expected_flips: F32 | None = None
    neighbours: int = DEFAULT_NEIGHBOURS
    device: torch.device = _CPU

    def need_embeddings(self) -> tuple[F32, F32]:
        """Embeddings and prototypes; ValueError when one is missing."""
        return required(self.embeddings, Input.EMBEDDINGS), required(self.prototypes, Input.PROTOTYPES)

    def need_rng(self) -> np.random.Generator:
        """The generator; ValueError when there is none."""
        return required(self.rng, Input.RNG)


def required(value: T | None, what: Input) -> T:
    """An input that an order declares; ValueError naming it when it is missing."""
    if value is None:
        raise ValueError(f"this order needs {what}")
    return value


@dataclass(frozen=True)
class Order:
    """One order.

    Attributes:
        description: one line. source: where the score comes from.
        needs: what `score` looks at.
        score: gives (n,) float32.
        simulation_only: why no real rollout can use it, as the end of a sentence; None where one can.
    """

    name: str
    description: str
    source: str
    needs: frozenset[Input]
    score: Callable[[Inputs], F32]
    simulation_only: str | None = None
