"""The number of matches: against a loop written from the rule, and the rule case by case."""

from __future__ import annotations

import numpy as np
import pytest

from models.matching import CROP, WHOLE, Pair, Query
from models.matching.local import Features
from models.matching.matcher import MatchVerifier, match_count, matches
from tests.unit.models.matching.pictures import features


def naive(reference, query):
    """Point by point in whole numbers, as the original's C does: an accepted place is updated, never counted twice."""
    kept = []
    for k1, a in enumerate(reference.descriptors.astype(int)):
        d = [int(((a - b) ** 2).sum()) for b in query.descriptors.astype(int)]
        k2 = d.index(min(d))
        rest = d[:k2] + d[k2 + 1 :]
        if not np.float32(1.8) * np.float32(d[k2]) < (min(rest) if rest else np.inf):
            continue
        p1 = tuple(round(float(x)) for x in reference.positions[k1])
        p2 = tuple(round(float(x)) for x in query.positions[k2])
        doubles = [each for each in kept if each[2] == p1 or each[3] == p2]
        for each in doubles:
            if d[k2] <= each[4]:
                each[:] = [k1, k2, p1, p2, d[k2]]
        if not doubles:
            kept.append([k1, k2, p1, p2, d[k2]])
    return [each[:2] for each in kept]


def noisy(original, rng, noise, places):
    """The same points in another order, their descriptors disturbed, rounded to few places so that many coincide."""
    order = rng.permutation(len(original))
    disturbed = original.descriptors[order] + rng.normal(0, noise, (len(original), 128))
    positions = (original.positions[order] % places).astype(np.float32)
    return Features(positions, np.clip(np.rint(disturbed), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("noise", [0.0, 6.0, 12.0])
@pytest.mark.parametrize("places", [4, 12, 1000])
def test_it_is_the_rule_point_by_point_also_where_places_coincide(noise, places):
    rng = np.random.default_rng(int(noise) + places)
    points = features("coffee-3")
    chosen = rng.permutation(len(points))[:70]
    reference = Features(points.positions[chosen], points.descriptors[chosen])
    query = noisy(reference, rng, noise, places)
    expected = naive(reference, query)
    assert matches(reference, query).tolist() == expected
    assert 0 < len(expected) <= min(70, (places + 1) ** 2)


def axis(*numbers):
    """Descriptors that differ in their first number alone."""
    rows = np.zeros((len(numbers), 128), np.uint8)
    rows[:, 0] = numbers
    return rows


def at(*places):
    return np.array(places, np.float32)


def test_the_ratio_is_one_point_eight_of_squares_and_equals_do_not_match():
    here, two = at((0, 0)), at((0, 0), (5, 5))
    assert len(matches(Features(here, axis(100)), Features(two, axis(90, 114)))) == 1  # 1.8 * 100 < 196
    assert len(matches(Features(here, axis(100)), Features(two, axis(90, 113)))) == 0  # 1.8 * 100 > 169
    assert len(matches(Features(here, axis(100)), Features(two, axis(100, 100)))) == 0
    assert len(matches(Features(here, axis(100)), Features(here, axis(9)))) == 1  # nothing to compare with
    assert matches(Features(here[:0], axis()), Features(two, axis(1, 2))).shape == (0, 2)


def test_a_second_match_at_a_place_counts_only_once_and_the_better_one_stays():
    query = Features(at((0, 0), (50, 50)), axis(100, 200))
    together = at((10.4, 10), (9.6, 10))
    assert matches(Features(together, axis(102, 199)), query).tolist() == [[1, 1]]  # the second is nearer
    assert matches(Features(together, axis(101, 197)), query).tolist() == [[0, 0]]
    assert len(matches(Features(at((10.4, 10), (10.6, 10)), axis(102, 199)), query)) == 2  # 10 and 11


def test_a_place_of_the_query_counts_once_too():
    query = Features(at((3, 3), (3.3, 3)), axis(100, 200))
    assert matches(Features(at((0, 0), (9, 9)), axis(101, 199)), query).tolist() == [
        [1, 1]
    ]  # as near: the later
    assert matches(Features(at((0, 0), (9, 9)), axis(101, 190)), query).tolist() == [[0, 0]]


def test_the_mirrored_count_is_the_larger_of_two():
    points = features("astronaut-5")
    assert match_count(points, points, mirrored=True) == match_count(points, points) > 50
    turned = points.mirrored()
    assert match_count(points, turned, mirrored=True) == match_count(points, points)
    assert match_count(points, turned) < 5


def test_the_verifier_compares_the_view_that_proposed_the_pair_and_gives_nothing_for_few_points():
    picture, other = features("astronaut-5"), features("coffee-3")
    few = Features(picture.positions[:9], picture.descriptors[:9])
    queries = {"q": Query("q", other, crop=picture), "few": Query("few", few), "none": Query("none", picture)}
    verifier = MatchVerifier({"a": picture, "few": few}, queries)
    assert (
        verifier.score(Pair("q", "a", CROP))
        == match_count(picture, picture)
        > 10 * verifier.score(Pair("q", "a", WHOLE))
    )
    assert verifier.score(Pair("none", "a", CROP)) == verifier.score(Pair("none", "a", WHOLE)) > 50
    assert verifier.score(Pair("few", "a")) == verifier.score(Pair("none", "few")) == 0.0
    with pytest.raises(KeyError):
        verifier.score(Pair("q", "b"))
