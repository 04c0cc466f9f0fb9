"""Candidates, verified and merged: what each branch alone can find."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageOps

from models.matching import CROP, WHOLE, Pair, Query, ScoredPair
from models.matching.branches import GlobalBranch, LocalBranch
from models.matching.local import Features
from models.matching.matcher import MatchVerifier
from models.matching.merge import SumMerger, find_copies
from models.matching.overlay import RectangleFinder, overlay_of
from models.matching.search import LocalIndex
from tests.unit.models.matching.pictures import features, region, sift

REFERENCES = ("astronaut-5", "coffee-3", "ihc-1", "motorcycle_left-2", "coins-1")
INSET, HOST = "coins-1", "ihc-1"


@pytest.fixture(scope="module")
def references():
    return {name: features(name) for name in REFERENCES}


@pytest.fixture(scope="module")
def index(references):
    return LocalIndex(references)


@pytest.fixture(scope="module")
def overlaid():
    """A reference pasted into another reference: the host's points outvote it on the whole picture."""
    picture = region(HOST).resize((600, 600))
    picture.paste(region(INSET).resize((190, 150)), (330, 350))
    crop = overlay_of(picture, RectangleFinder(), 0.5)
    assert crop is not None
    return Query("overlaid", sift()(picture), sift()(crop))


@pytest.fixture(scope="module")
def flipped():
    return Query("flipped", sift()(ImageOps.mirror(region("astronaut-5"))))


def found(branches, references, query, *, mirrored=False):
    verifier = MatchVerifier(references, {query.key: query}, mirrored=mirrored)
    return {pair.reference: pair.score for pair in find_copies(branches, verifier, [query])}


def test_a_pasted_copy_is_found_by_the_branch_of_the_crop_alone(references, index, overlaid):
    whole, crop = LocalBranch(index, WHOLE), LocalBranch(index, CROP)
    assert set(found([whole], references, overlaid)) == {HOST}
    assert set(found([crop], references, overlaid)) == {INSET}
    both = found([whole, crop], references, overlaid)
    assert set(both) == {HOST, INSET}
    assert both[INSET] > 10


def test_a_flipped_copy_is_found_by_mirrored_matching_alone(references, index, flipped):
    assert found([LocalBranch(index)], references, flipped) == {}
    scores = found([LocalBranch(index, mirrored=True)], references, flipped, mirrored=True)
    assert set(scores) == {"astronaut-5"}
    unturned = found([LocalBranch(index, mirrored=True)], references, flipped, mirrored=False)
    assert scores["astronaut-5"] > 20 > 4 * unturned["astronaut-5"]


def test_mirrored_votes_take_nothing_from_a_copy_that_is_not_mirrored(references, index):
    for name in REFERENCES:
        query = Query("q", features(name))
        assert LocalBranch(index, mirrored=True).candidates([query]) == [Pair("q", name, WHOLE)]


def test_a_query_without_crop_or_with_few_points_has_no_candidate(index):
    points = features("coffee-3")
    few = Features(points.positions[:9], points.descriptors[:9])
    assert LocalBranch(index, CROP).candidates([Query("q", points)]) == []
    assert LocalBranch(index).candidates([Query("q", few)]) == []
    assert LocalBranch(index, CROP).candidates([Query("q", few, points)]) == [Pair("q", "coffee-3", CROP)]


def test_the_global_branch_names_the_nearest_reference_of_every_query():
    vectors = np.eye(3, 4, dtype=np.float32)
    nothing = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    queries = [Query(str(k), nothing, embedding=np.roll(vectors[0], k) + np.float32(0.1)) for k in (2, 0, 3)]
    pairs = GlobalBranch(["a", "b", "c"], vectors).candidates(queries)
    assert pairs == [Pair("2", "c", CROP), Pair("0", "a", CROP), Pair("3", "a", CROP)]
    with pytest.raises(ValueError, match="1 queries have no embedding"):
        GlobalBranch(["a", "b", "c"], vectors).candidates([queries[0], Query("x", nothing)])
    with pytest.raises(ValueError, match="2 keys for 3"):
        GlobalBranch(["a", "b"], vectors)
    assert GlobalBranch([], vectors[:0]).candidates(queries) == []


def test_merging_sums_the_scores_of_a_pair_and_keeps_one_row_of_it():
    merged = SumMerger().merge(
        [
            [ScoredPair("q", "a", 3.0), ScoredPair("p", "a", 9.0)],
            [ScoredPair("q", "a", 4.0), ScoredPair("q", "b", 7.0)],
            [],
            [ScoredPair("q", "a", 5.0)],
        ]
    )
    assert merged == [ScoredPair("q", "a", 12.0), ScoredPair("p", "a", 9.0), ScoredPair("q", "b", 7.0)]
    assert SumMerger().merge([]) == []
    ties = [ScoredPair(q, r, 1.0) for q, r in (("b", "a"), ("a", "b"), ("a", "a"))]
    assert SumMerger().merge([ties]) == [ties[2], ties[1], ties[0]]


def test_a_pair_that_three_branches_find_counts_threefold_but_is_scored_once_a_view(references, index):
    query = Query("q", features("coffee-3"), features("coffee-3"), np.eye(1, 4, dtype=np.float32)[0])
    asked = []

    class Counted(MatchVerifier):
        def score(self, pair):
            asked.append(pair)
            return super().score(pair)

    verifier = Counted(references, {"q": query})
    alone = verifier.score(Pair("q", "coffee-3"))
    asked.clear()
    branches = [
        GlobalBranch(["coffee-3"], np.eye(1, 4, dtype=np.float32)),
        LocalBranch(index, WHOLE),
        LocalBranch(index, CROP),
    ]
    assert find_copies(branches, verifier, [query]) == [ScoredPair("q", "coffee-3", 3 * alone)]
    assert asked == [Pair("q", "coffee-3", CROP), Pair("q", "coffee-3", WHOLE)]
