"""Calibration: the maps, the layout, what a fit finds where there is something to find, and that it stays off elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.calibration import (
    IDENTITY,
    Calibration,
    Duel,
    Effect,
    cross_fit,
    effect_of,
    fit,
    joined,
    lay_out,
    unseen_by,
    widen,
)
from orchestrator.core.metrics import Relevance, top_k
from orchestrator.core.significance import Interval
from orchestrator.core.simulate import duel_of, refresh_curve

SCALES = st.floats(0.05, 20)
OFFSETS = st.floats(-5, 5)


def normalised(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class World:
    """Classes on a sphere: queries, stored vectors, relevance; `new` maps the stored vectors' scores by a calibration."""

    def __init__(self, seed=0, n=1500, q=500, classes=150, dim=24, noise=0.16):
        rng = np.random.default_rng(seed)
        centres = normalised(rng.normal(size=(classes, dim)))
        of_row, of_query = rng.integers(0, classes, n), rng.integers(0, classes, q)
        self.rng = rng
        self.stored = normalised(centres[of_row] + noise * rng.normal(size=(n, dim)))
        self.queries = normalised(centres[of_query] + noise * rng.normal(size=(q, dim)))
        self.relevance = Relevance.from_labels(of_query.tolist(), of_row.tolist())
        self.old_right = self.relevance.hits(top_k(self.queries, self.stored, 1)[1])
        assert self.relevance.answerable.all()

    def duel(self, planted, orders=3):
        """Along random orders, where the new model's scores are `planted` of the stored ones."""
        asked, base, new = widen(self.queries), lay_out(self.stored, IDENTITY), lay_out(self.stored, planted)
        order = [self.rng.permutation(len(base)) for _ in range(orders)]
        return joined([duel_of(asked, base, new, each, self.relevance) for each in order])


# ---- maps and layout -------------------------------------------------------------------------------------------------


@given(SCALES, OFFSETS, SCALES, OFFSETS)
def test_after_is_one_map_and_then_the_other(scale, offset, other_scale, other_offset):
    first, second = Calibration(scale, offset), Calibration(other_scale, other_offset)
    scores = np.array([-1.0, 0.0, 0.3, 1.0])
    np.testing.assert_allclose(
        second.after(first).apply(scores), second.apply(first.apply(scores)), atol=1e-9
    )
    assert Calibration.of(first.stored()) == first


@pytest.mark.parametrize("bad", [(0, 0), (-1, 0), (float("nan"), 0), (1, float("inf"))])
def test_a_map_that_would_turn_scores_around_is_refused(bad):
    with pytest.raises(ValueError, match="scale over 0"):
        Calibration(*bad)


def test_nothing_stored_is_the_identity():
    assert Calibration.of(None) == IDENTITY
    assert IDENTITY.identity
    assert not Calibration(1.0, 0.1).identity
    assert not Calibration(1.1, 0.0).identity


def test_the_inner_product_of_a_laid_out_row_is_the_calibrated_score():
    rng = np.random.default_rng(1)
    rows, queries = normalised(rng.normal(size=(30, 7))), normalised(rng.normal(size=(5, 7)))
    wanted = Calibration(1.7, -0.4).apply((queries @ rows.T).astype(np.float64))
    np.testing.assert_allclose(widen(queries) @ lay_out(rows, Calibration(1.7, -0.4)).T, wanted, atol=1e-6)


def test_a_query_that_could_not_be_read_scores_nothing():
    asked = widen(np.array([[0, 0], [0.6, 0.8]], np.float32))
    assert asked.tolist() == [[0, 0, 0], [np.float32(0.6), np.float32(0.8), 1]]


@given(SCALES, OFFSETS, st.integers(0, 2**32 - 1))
def test_one_version_alone_ranks_as_it_does_raw(scale, offset, seed):
    """Whole coordinates and a map of short binary fractions: no rounding hides a change, ties included."""
    rng = np.random.default_rng(seed)
    calibration = Calibration(np.ldexp(1.0, round(np.log2(scale))), round(offset * 4) / 4)
    rows = rng.integers(-4, 5, (60, 5)).astype(np.float32)
    queries = rng.integers(-4, 5, (7, 5)).astype(np.float32)
    queries[~queries.any(axis=1)] = 1
    raw = top_k(queries, rows, 10)[1]
    np.testing.assert_array_equal(top_k(widen(queries), lay_out(rows, calibration), 10)[1], raw)


# ---- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [Calibration(0.8, -0.1), Calibration(0.8, 0.3), Calibration(1.3, 0.05)])
def test_scores_that_were_shrunk_and_shifted_are_recovered(planted):
    """What the new model sees is what the old one saw, on another scale: undone, the refresh changes no answer."""
    world = World()
    duel = world.duel(planted)
    fitted = cross_fit(duel, world.old_right, world.rng)
    assert fitted.effect.pays
    assert fitted.effect.nfr[0] > 0.05
    assert fitted.effect.nfr[1] < 0.1 * fitted.effect.nfr[0]
    # Where two versions meet, at the best scores, the map is the inverse of what was planted.
    best = duel.stored[duel.mixed]
    undone = fitted.calibration.after(planted).apply(best)
    assert np.abs(undone - best).mean() < 0.03


def test_identical_spaces_stay_raw():
    world = World()
    fitted = cross_fit(world.duel(IDENTITY), world.old_right, world.rng)
    assert fitted is None or not fitted.effect.pays


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_stays_raw(seed):
    """Same scale, and each model errs by itself: there is nothing that a map could undo."""
    world = World(seed, q=250)
    new = normalised(world.stored + 0.05 * world.rng.normal(size=world.stored.shape))
    orders = [world.rng.permutation(len(new)) for _ in range(3)]
    duel = joined([duel_of(world.queries, world.stored, new, each, world.relevance) for each in orders])
    fitted = cross_fit(duel, world.old_right, world.rng)
    assert not fitted.effect.pays


def test_flips_are_not_cut_by_hiding_what_is_new():
    """New rows lose a tenth of the old answers and win all that were wrong, by the same margins: hidden, nothing flips."""
    rng = np.random.default_rng(3)
    n = 1000
    right_old = np.arange(n) < 600
    duel = Duel(
        coverage=np.array([0.5]),
        stored=np.full((1, n), 0.5),
        renewed=0.6 + rng.normal(0, 0.02, (1, n)),
        stored_hits=right_old[None],
        renewed_hits=(np.arange(n) >= 60)[None],
    )
    assert (right_old & ~duel.right(Calibration(1.0, -1.0))).sum() == 0, "hiding would cut every flip"
    assert duel.right(fit(duel, right_old)).mean() > 0.9


def test_where_nothing_is_contested_there_is_nothing_to_fit():
    duel = Duel(
        np.array([0.0, 1.0]),
        np.array([[0.5, 0.4], [-np.inf, -np.inf]]),
        np.array([[-np.inf, -np.inf], [0.5, 0.4]]),
        np.array([[True, False], [False, False]]),
        np.array([[False, False], [True, True]]),
    )
    assert fit(duel, np.array([True, True])) == IDENTITY
    assert cross_fit(duel, np.array([True, True]), np.random.default_rng(0)) is None


def test_each_query_is_judged_by_the_map_of_the_other_half():
    answers = np.array([True, True, True]), np.array([False, False, False])
    assert unseen_by(np.array([0, 1, 0]), answers).tolist() == [False, True, False]
    world = World(q=300)
    duel = world.duel(Calibration(0.8, 0.1))
    fitted = cross_fit(duel, world.old_right, world.rng)
    assert fitted.half.sum() == 150
    for half in (0, 1):
        inside = fitted.half == half
        assert fitted.halves[half] == fit(duel.of(np.flatnonzero(inside)), world.old_right[inside])


def test_the_same_generator_fits_the_same():
    one, two = (World(7, q=200) for _ in range(2))
    found = [cross_fit(w.duel(Calibration(0.9, 0.2)), w.old_right, w.rng) for w in (one, two)]
    assert found[0].calibration == found[1].calibration
    assert found[0].effect == found[1].effect


# ---- the effect ------------------------------------------------------------------------------------------------------


def effect(**changes):
    usual = {"nfr": (0.1, 0.05), "recall": (0.7, 0.72), "lowest": (0.6, 0.6), "queries": 100}
    return Effect(**usual | {"difference": Interval(-0.07, -0.03)} | changes)


def test_it_pays_only_where_flips_fall_beyond_chance_and_no_recall_does():
    assert effect().pays
    assert not effect(difference=Interval(-0.07, 0.0)).pays
    assert not effect(recall=(0.7, 0.699)).pays
    assert not effect(lowest=(0.6, 0.599)).pays


def test_the_effect_counts_mixed_states_alone():
    inf = np.inf
    duel = Duel(
        np.array([0.0, 0.5, 1.0]),
        np.array([[1.0, 1.0], [1.0, 1.0], [-inf, -inf]]),
        np.array([[-inf, -inf], [1.0, 1.0], [1.0, 1.0]]),
        np.zeros((3, 2), bool),
        np.zeros((3, 2), bool),
    )
    old_right = np.array([True, True])
    raw = np.array([[False, False], [True, False], [False, False]])
    changed = np.array([[False, False], [True, True], [False, False]])
    found = effect_of(duel, raw, changed, old_right, np.random.default_rng(0))
    assert (found.nfr, found.recall, found.lowest) == ((0.5, 0.0), (0.5, 1.0), (0.5, 1.0))


# ---- the duel against the refresh ------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", [IDENTITY, Calibration(1.2, -0.15)])
def test_a_duel_answers_as_the_refresh_curve_of_the_laid_out_mixture(calibration):
    world = World(5, n=400, q=80, classes=30)
    new = normalised(world.stored + 0.1 * world.rng.normal(size=world.stored.shape))
    order = world.rng.permutation(len(new))
    duel = duel_of(world.queries, world.stored, new, order, world.relevance)
    curve = refresh_curve(
        world.queries, world.stored, new, order, world.relevance, world.old_right, calibration=calibration
    )
    np.testing.assert_array_equal(duel.right(calibration), np.array([point.answers for point in curve]))
    for state, point in enumerate(curve):  # and as searching the mixture in full
        rows = lay_out(world.stored, IDENTITY)
        done = order[: point.items]
        rows[done] = lay_out(new[done], calibration)
        found = top_k(widen(world.queries), rows, 1)[1]
        np.testing.assert_array_equal(world.relevance.hits(found), duel.right(calibration)[state])
    assert duel.mixed.tolist() == [False, *[True] * 20, False]


def test_a_duel_asks_stored_rows_with_the_old_systems_queries():
    world = World(6, n=300, q=60, classes=25)
    old = normalised(world.queries + 0.2 * world.rng.normal(size=world.queries.shape))
    order = np.arange(300)
    duel = duel_of(
        world.queries, world.stored, world.stored, order, world.relevance, [0.0, 1.0], base_queries=old
    )
    np.testing.assert_allclose(duel.stored[0], top_k(old, world.stored, 1)[0][:, 0], rtol=1e-6)
    np.testing.assert_allclose(duel.renewed[1], top_k(world.queries, world.stored, 1)[0][:, 0], rtol=1e-6)
    np.testing.assert_array_equal(duel.stored_hits[0], world.relevance.hits(top_k(old, world.stored, 1)[1]))
