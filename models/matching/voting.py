"""Which reference the points of a query vote for, and whether that is enough to be a candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MORE_THAN = 3
MORE_THAN_ALONE = 5
NEARER_THAN = 8000.0
"""Mean squared distance of the votes: a cosine of about 0.9385 between RootSIFT descriptors."""


@dataclass(frozen=True)
class Election:
    """Who won: the reference's number, its votes and their mean squared distance."""

    reference: int
    votes: int
    distance: float


def elect(owners: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> Election | None:
    """The reference that most points vote for, if it is accepted.

    Accepted are more than 3 votes, more than the runner-up has; where one reference alone got votes, more than 5; and in
    both cases a mean squared distance of its votes under 8,000.

    Args:
        owners: (n,) the reference of the nearest descriptor of each point of the query.
        distances: (n,) squared distances to them.
    """
    if not len(owners):
        return None
    voted, counts = np.unique(owners, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    winner, votes = int(voted[order[0]]), int(counts[order[0]])
    alone = len(voted) == 1
    enough = votes > MORE_THAN_ALONE if alone else votes > max(MORE_THAN, int(counts[order[1]]))
    distance = float(distances[owners == winner].mean(dtype=np.float64))
    return Election(winner, votes, distance) if enough and distance < NEARER_THAN else None
