"""Who is a candidate: the rule's truth table."""

from __future__ import annotations

import numpy as np
import pytest

from models.matching.voting import Election, elect


def poll(votes, distance):
    """Votes for references 0, 1, ... at a distance each, in an order that tells nothing."""
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(votes)), votes))
    return elect(owners, np.asarray(distance, np.float32)[owners])


@pytest.mark.parametrize(
    ("votes", "distance", "accepted"),
    [
        ([4, 3], [7999, 0], True),  # more than 3, more than the runner-up, near enough
        ([3, 2], [100, 0], False),  # not more than 3
        ([4, 4], [100, 100], False),  # not more than the runner-up
        ([4, 3], [8000, 0], False),  # not under 8000
        ([4, 1, 3, 1], [5000, 9e4, 9e4, 9e4], True),  # other references' distances do not matter
        ([6], [7999], True),  # alone: more than 5
        ([5], [100], False),
        ([6], [8000], False),
        ([0, 6], [0, 100], True),  # a reference without votes is no runner-up
        ([0, 5], [0, 100], False),
        ([], [], False),
    ],
)
def test_the_truth_table(votes, distance, accepted):
    winner = int(np.argmax(votes)) if votes else 0
    expected = Election(winner, max(votes), distance[winner]) if accepted else None
    assert poll(votes, distance) == expected


def test_the_mean_is_over_the_winners_votes():
    owners = np.array([1, 1, 1, 1, 0])
    distances = np.array([31_000, 300, 300, 300, 9e4], np.float32)
    assert elect(owners, distances) == Election(1, 4, 7975.0)
    assert elect(owners, distances + np.float32(25)) is None
