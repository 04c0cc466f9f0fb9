"""Rows that changed places: some items of a batch are encoded a second time, alone, and compared with their row.

A permuted batch has finite vectors of length one and a right checksum; only its content tells. An item in its place answers
the same both times; one that was exchanged for another does not. Of m rows with p in a wrong place, k canaries find it with
probability of about 1 − (1 − p/m)^k: rows turned round or shifted as a whole always, two exchanged rows seldom.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEAST_COSINE = 0.999
LEAST_CODE_COSINE = 0.8
"""Of codes: the last digits of an embedding, which are others alone than in a batch, turn a bit now and then."""


def canary_places(first_rank: int, fence: int, n: int, count: int = 2) -> list[int]:
    """Which of a batch's n prepared items are encoded again: sorted, the same for one claim, others for the next.

    They lie n / count apart, from a place that the claim's numbers choose.
    """
    count = min(n, count)
    start = int(np.random.SeedSequence((first_rank, fence)).generate_state(1)[0])
    return sorted((start + at * n // count) % n for at in range(count))


def misplaced(
    encoded: npt.NDArray[np.float32],
    places: list[int],
    again: npt.NDArray[np.float32],
    least: float = LEAST_COSINE,
) -> list[int]:
    """The canaries whose row is not what they answer alone.

    Args:
        encoded: (n, dim) float32, L2-normalised: the batch.
        places: the canaries' rows in it.
        again: (len(places), dim) float32, L2-normalised: the same items, encoded one by one.
        least: cosine of the same item's two answers.
    """
    cosines = (encoded[places] * again).sum(axis=1)
    return [place for place, cosine in zip(places, cosines, strict=True) if not cosine >= least]
