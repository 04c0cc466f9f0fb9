"""Class means and k-means centroids."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.prototypes import class_means, kmeans_centroids


def test_class_means_are_the_normalised_means_of_each_class_by_rising_label(unit, rng):
    vectors, labels = unit(200, 8), rng.integers(-1, 6, 200) * 10
    labels[labels < 0] = -1
    found = class_means(vectors, labels)
    classes = sorted({int(label) for label in labels if label >= 0})
    assert found.shape == (len(classes), 8)
    assert found.dtype == np.float32
    for mean, label in zip(found, classes, strict=True):
        expected = vectors[labels == label].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_class_whose_vectors_cancel_out_gets_its_first_member():
    vectors = np.array([[0, 1], [1, 0], [-1, 0]], np.float32)
    assert class_means(vectors, np.array([0, 1, 1])).tolist() == [[0, 1], [1, 0]]


def test_class_means_without_labels_are_refused(unit):
    with pytest.raises(ValueError, match="labelled"):
        class_means(unit(3, 4), np.full(3, -1))
    with pytest.raises(ValueError, match="2 labels for 3"):
        class_means(unit(3, 4), np.zeros(2, int))


@pytest.fixture
def clusters(unit, rng):
    centres = unit(12, 32)
    members = rng.integers(0, 12, 600)
    vectors = centres[members] + 0.05 * unit(600, 32)
    return centres, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def closeness(vectors, centroids):
    return float((vectors @ centroids.T).max(axis=1).mean())


def test_kmeans_finds_clusters_that_are_there(clusters):
    _, vectors = clusters
    found = kmeans_centroids(vectors, 12, np.random.default_rng(3))
    first = kmeans_centroids(vectors, 12, np.random.default_rng(3), iterations=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert closeness(vectors, found) > closeness(vectors, first) + 0.02
    # One more iteration by the textbook must not help: the centroids are the means of their members.
    members = (vectors @ found.T).argmax(axis=1)
    means = np.stack([vectors[members == c].mean(axis=0) for c in range(12)])
    np.testing.assert_allclose(means / np.linalg.norm(means, axis=1, keepdims=True), found, atol=1e-5)


def test_kmeans_is_the_same_for_the_same_generator(clusters):
    _, vectors = clusters
    one, same, other = (kmeans_centroids(vectors, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_an_empty_cluster_restarts_at_the_worst_served_points():
    """Three equal points and two others: starting centroids coincide, and still all three places are found."""
    vectors = np.array([[1, 0, 0]] * 20 + [[0, 1, 0], [0, 0, 1]], np.float32)
    found = kmeans_centroids(vectors, 3, np.random.default_rng(0))
    assert closeness(vectors, found) == pytest.approx(1)


def test_more_clusters_than_items_give_the_items(unit):
    vectors = unit(4, 8)
    found = kmeans_centroids(vectors, 9, np.random.default_rng(0))
    np.testing.assert_allclose(found[np.lexsort(found.T)], vectors[np.lexsort(vectors.T)], atol=1e-6)


def test_kmeans_of_nothing_is_refused(unit):
    with pytest.raises(ValueError, match="clusters and vectors"):
        kmeans_centroids(unit(4, 8), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="clusters and vectors"):
        kmeans_centroids(np.empty((0, 8), np.float32), 2, np.random.default_rng(0))
