"""Flips along a refresh against searching everything again, at ten random places of it."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.calibration import IDENTITY, Calibration, lay_out, widen
from orchestrator.core.flips import Cause, FlipCounts, FlipKind, FlipTracker, Reference
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import Relevance, top_k


def follow_causes(causes, stage):
    """Query -> cause of its open negative flip against the old system, as the stages tell it."""
    for event in stage.events:
        if event.reference is Reference.OLD_SYSTEM and event.kind is FlipKind.NEGATIVE:
            if event.healed:
                del causes[event.query]
            else:
                causes[event.query] = event.cause
    causes.update({query: Cause.MODEL for query in stage.blamed if query in causes})


def causes_in_full(answers, right, right_before, relevance, done):
    """The same by the definition: nothing that a wrong query finds or should find is still to come."""
    return {
        query: Cause.MODEL
        if done[answers[query]].all() and done[relevance.of(query)].all()
        else Cause.MIXED_STAGE
        for query in np.flatnonzero(relevance.answerable & right_before & ~right).tolist()
    }


N, Q, D, BATCH = 1500, 120, 12, 50


@pytest.mark.parametrize("calibration", [None, Calibration(1.5, 2.25)], ids=["raw", "calibrated"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("drift", [0.6, 0.0, -0.6], ids=["improving", "neutral", "falling"])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_ten_random_checkpoints_answers_scores_and_flips_are_those_of_a_full_search(
    seed, drift, k, calibration
):
    """Whole coordinates: dot products are exact, so ids and scores are equal bit by bit, ties as well."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-4, 5, (Q, D)).astype(np.float32)
    old_queries = queries + rng.integers(-1, 2, (Q, D))
    gallery = rng.integers(-4, 5, (N, D)).astype(np.float32)
    owner = rng.integers(0, Q, N)  # each row answers one query, and moves towards it, or away
    relevance = Relevance.from_pairs(Q, owner, np.arange(N))
    new = np.rint(gallery + drift * queries[owner] + rng.integers(-1, 2, (N, D))).astype(np.float32)
    old_queries = old_queries.astype(np.float32)
    if calibration is not None:  # as rows are laid out where scores are calibrated
        queries, old_queries = widen(queries), widen(old_queries)
        gallery, new = lay_out(gallery, IDENTITY), lay_out(new, calibration)

    old_scores, old_rows = top_k(old_queries, gallery, k)
    right_before = relevance.hits(old_rows)[relevance.answerable]
    tracker = FlipTracker(relevance, old_scores, old_rows)
    live = gallery.copy()
    index = IncrementalTopK(queries, live, k, 4 * k)
    stage = tracker.update(np.arange(Q), *index.top())
    batches = np.array_split(rng.permutation(N), N // BATCH)
    checkpoints = set(rng.choice(len(batches), 10, replace=False).tolist())
    done = np.zeros(N, np.bool_)
    previous = tracker.right.copy()
    compared, causes = 0, {}
    follow_causes(causes, stage)
    for number, rows in enumerate(batches):
        changed = index.apply(rows, new[rows])
        done[rows] = True
        scores, found = index.top()
        stage = tracker.update(changed, scores[changed], found[changed], done)
        follow_causes(causes, stage)
        gained = int(tracker.right[relevance.answerable].sum()) - int(right_before.sum())
        assert stage.against_old.positive_flips - stage.against_old.negative_flips == gained
        if number in checkpoints:
            mixture = np.where(done[:, None], new, gallery)
            full_scores, full_rows = top_k(queries, mixture, k)
            np.testing.assert_array_equal(scores, full_scores)
            np.testing.assert_array_equal(found, full_rows)
            right = relevance.hits(full_rows)
            assert causes == causes_in_full(full_rows, right, relevance.hits(old_rows), relevance, done)
            assert stage.against_old == FlipCounts.of(right_before, right[relevance.answerable])
            assert stage.against_previous == FlipCounts.of(
                previous[relevance.answerable], right[relevance.answerable]
            )
            compared += 1
        previous = tracker.right.copy()
    assert compared == 10
    wrong = FlipCounts.of(right_before, tracker.right[relevance.answerable]).negative_flips
    assert stage.against_old.negative_flips == wrong
