"""Sticky shares: right within binomial bounds, monotone, other people for other rollouts."""

from __future__ import annotations

import math

import pytest

from orchestrator.core.traffic import BUCKETS, NEW, OLD, Split, bucket, in_share

IDS = [f"user-{number}" for number in range(10_000)]


@pytest.mark.parametrize("percent", [1, 10, 50, 90])
@pytest.mark.parametrize("salt", [1, 77])
def test_the_share_of_ten_thousand_ids_is_right(percent, salt):
    part = percent / 100
    found = sum(in_share(bucket(each, salt), percent) for each in IDS)
    assert abs(found - part * len(IDS)) <= 4 * math.sqrt(len(IDS) * part * (1 - part))


def test_raising_the_percentage_moves_nobody_back():
    before: set[str] = set()
    for percent in (0, 0.5, 1, 10, 33.3, 50, 99.99, 100):
        now = {each for each in IDS if Split(percent, 0).system(bucket(each, 3)) == NEW}
        assert before <= now
        before = now
    assert before == set(IDS)
    assert {Split(0, 0.5).system(bucket(each, 3)) for each in IDS} == {OLD}


def test_the_first_of_one_rollout_are_not_the_first_of_the_next():
    first = [{each for each in IDS if in_share(bucket(each, salt), 10)} for salt in (1, 2)]
    assert 50 < len(first[0] & first[1]) < 150


def test_a_bucket_is_the_same_in_every_release():
    assert [bucket("ann", 1), bucket("ann", 2), bucket("Zoë", 1), bucket("\udc80", 1)] == PINNED
    assert all(0 <= bucket(each, 1) < BUCKETS for each in IDS)


PINNED = [4833, 4963, 8053, 3968]


@pytest.mark.parametrize("wrong", [(-1, 0), (101, 0), (float("nan"), 0), (0, -0.1), (0, 1.1)])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="not"):
        Split(*wrong)
