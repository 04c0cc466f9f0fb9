"""The benchmark of re-ranked refreshes, in small: what it simulates, and that the half that measures drives nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import reorder
from orchestrator.core import plan
from orchestrator.core.metrics import top_k

CLASSES, ITEMS, DIM = 30, 12, 24


@pytest.fixture
def given():
    """An upgrade as compatible training leaves it: new vectors are better, and new-to-new scores higher than new-to-old."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, DIM))
    labels = np.repeat(np.arange(CLASSES), ITEMS)
    asked = np.tile(np.arange(CLASSES), 4)

    def vectors(classes, noise, shift=0.0):
        found = centres[classes] + noise * rng.standard_normal((len(classes), DIM)) + shift
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    stored = vectors(labels, 0.9)
    return reorder.Given(
        old_queries=vectors(asked, 0.9), queries=vectors(asked, 0.6, 0.6), stored=stored, base=stored,
        new=vectors(labels, 0.6, 0.6), asked=asked.astype(str), labels=labels.astype(str), prototypes=centres.astype(np.float32),
    )  # fmt: skip


@pytest.fixture
def world(given):
    return reorder.in_halves(given, seed=0)


def test_a_class_that_is_asked_for_twice_is_measured_by_an_item_that_left_the_gallery(given):
    world = reorder.asked_twice(given, seed=0)
    assert (world.drives.sum(), (~world.drives).sum()) == (4 * CLASSES, CLASSES)
    assert len(world.base) == len(world.new) == len(world.labels) == CLASSES * (ITEMS - 1)
    assert (world.relevance.counts == ITEMS - 1).all()
    asks_again = world.queries[~world.drives]
    assert (asks_again[:, None] == given.new[None]).all(axis=2).any(axis=1).all()
    assert not (asks_again[:, None] == world.new[None]).all(axis=2).any()


def static_plan(world):
    return plan.order_rows(np.random.default_rng(1).random(len(world.base), dtype=np.float32))


def test_a_refresh_that_follows_nothing_is_searched_exactly(world, monkeypatch):
    monkeypatch.setattr(reorder, "BATCHES", 9)
    row_of = static_plan(world)
    along = reorder.refresh(world, row_of, None)
    assert (along.revisions, along.coverage[0], along.coverage[-1]) == (0, 0.0, 1.0)
    sets = reorder.halves(world, world.relevance.answerable)
    assert not (sets["driving"] & sets["held_out"]).any()
    for place in (0, 4, 9):
        done = row_of[: round(along.coverage[place] * len(row_of))]
        mixture = world.base.copy()
        mixture[done] = world.new[done]
        right = world.relevance.hits(top_k(world.queries, mixture, 1)[1])
        for half, rows in sets.items():
            assert along.nfr[half][place] == (world.old_right & ~right)[rows].mean()
            assert along.recall[half][place] == right[rows].mean()


def test_following_flips_leaves_fewer_of_the_driving_half_and_ends_at_the_same_place(world):
    row_of = static_plan(world)
    static, driven = (reorder.refresh(world, row_of, follows) for follows in (None, "flips"))
    assert 10 <= driven.revisions <= 20
    assert driven.mean_nfr("driving") < 0.9 * static.mean_nfr("driving")
    assert driven.nfr["driving"][-1] == static.nfr["driving"][-1]
    assert driven.nfr["held_out"][-1] == static.nfr["held_out"][-1]


def test_what_the_held_out_half_knows_moves_nothing(world):
    row_of = static_plan(world)
    other = replace(world, old_right=np.where(world.drives, world.old_right, ~world.old_right))
    for follows in ("flips", "flips+demand"):
        one, two = reorder.refresh(world, row_of, follows), reorder.refresh(other, row_of, follows)
        assert one.recall == two.recall
        assert one.nfr["driving"] == two.nfr["driving"]
        assert one.nfr["held_out"] != two.nfr["held_out"]
    flipped = replace(world, old_right=~world.old_right)
    assert reorder.refresh(flipped, row_of, "flips").recall != reorder.refresh(world, row_of, "flips").recall


def test_every_order_is_measured_beside_the_static_one(world):
    found = {"arm": {name: [figures] for name, figures in reorder.measure(world, 0).items()}}
    rows = reorder.rows_of(found)
    assert [row.name.partition(": ")[2].partition(";")[0] for row in rows] == list(reorder.ORDERS)
    static = next(row for row in rows if row.name.startswith("arm: entropy;"))
    assert static.ratio == 1.0
    assert all(f"entropy {static.value:.4f}" in row.against for row in rows)
    # 360 items in batches of 4: a twentieth is full with every fifth batch.
    assert "18 revisions" in next(row.name for row in rows if "random + flips" in row.name)
