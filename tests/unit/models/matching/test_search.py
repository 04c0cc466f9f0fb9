"""The index of descriptors is a brute-force search, and the nearest vector is the nearest."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from models.errors import UsageError
from models.matching.local import Features
from models.matching.search import LocalIndex, nearest_vectors
from tests.unit.models.matching.pictures import features

NAMES = ("astronaut-5", "coffee-3", "ihc-1")


def test_the_nearest_descriptor_is_that_of_a_search_in_whole_numbers():
    references = {name: features(name) for name in NAMES}
    index = LocalIndex(references)
    asked = features("motorcycle_left-2").descriptors[:120]
    stored = np.concatenate([each.descriptors for each in references.values()]).astype(int)
    whose = np.repeat(np.arange(len(NAMES)), [len(each) for each in references.values()])
    distances = ((asked.astype(int)[:, None] - stored[None]) ** 2).sum(axis=2)
    owners, found = index.nearest(asked)
    assert len(index) == len(stored)
    assert found.tolist() == distances.min(axis=1).tolist()
    assert all(owner in whose[row == row.min()] for owner, row in zip(owners, distances, strict=True))
    assert len(set(owners.tolist())) == 3


def test_each_stored_point_finds_its_own_picture_at_distance_0_in_blocks_too(monkeypatch):
    monkeypatch.setattr("models.matching.search._QUERIES_AT_ONCE", 17)
    index = LocalIndex({name: features(name) for name in NAMES})
    for number, name in enumerate(NAMES):
        owners, distances = index.nearest(features(name).descriptors)
        assert (distances == 0).all()
        assert (owners == number).mean() > 0.99
        assert index.keys[number] == name


def test_references_with_few_points_take_no_part():
    points = features("coffee-3")
    few = Features(points.positions[:9], points.descriptors[:9])
    assert LocalIndex({"few": few, "all": points}).keys == ["all"]
    owners, distances = LocalIndex({"few": few}).nearest(points.descriptors)
    assert owners.shape == distances.shape == (0,)
    assert LocalIndex({"all": points}).nearest(points.descriptors[:0])[0].shape == (0,)


def test_the_nearest_vector_is_the_highest_product_and_of_equals_the_first(monkeypatch):
    rng = np.random.default_rng(3)
    vectors, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (57, 9))
    vectors[50] = vectors[7]
    queries[0] = vectors[7] * 10
    for block in (4096, 10):
        monkeypatch.setattr("models.matching.search._BLOCK", block)
        rows, scores = nearest_vectors(queries, vectors)
        assert rows.tolist() == [int(np.argmax(vectors @ q)) for q in queries]
        assert rows[0] == 7
        assert np.allclose(scores, (queries @ vectors.T).max(axis=1), rtol=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest_vectors(np.zeros((1, 4), np.float32), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest_vectors(np.zeros((1, 4), np.float32), np.zeros((0, 4), np.float32))


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"hotrefresh\[cpu\]"):
        LocalIndex({})
