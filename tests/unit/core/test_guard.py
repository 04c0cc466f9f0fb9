"""The guard: its band, its merge, and what is said of it on queries it was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.calibration import IDENTITY, Calibration, Duel
from orchestrator.core.guard import Guard, Refresh, cross_fit_guard, fit_guard


def refresh(margins, wrong, *, systems_right=True):
    """One mixed state; every query was right under the old system, those in `wrong` are lost in the mixture."""
    margins, wrong = np.asarray(margins, np.float64), np.asarray(wrong, bool)
    n = len(margins)
    ahead = margins > 0
    mixture = Duel(
        np.array([0.5]),
        np.zeros((1, n)),
        margins[None],
        np.where(ahead, True, ~wrong)[None],
        np.where(ahead, ~wrong, True)[None],
    )
    right = np.full((1, n), systems_right)
    systems = Duel(np.array([0.5]), np.zeros((1, n)), np.ones((1, n)), right, right)
    return Refresh(mixture, systems, np.ones(n, bool))


def test_the_band_is_the_cheapest_that_holds_the_part_of_the_flips():
    # Ten flips: eight stand close together, two far out, where many right answers lie.
    flips = [0.01, 0.011, 0.012, 0.013, 0.014, 0.015, 0.016, 0.017, -0.5, 0.5]
    right = [*np.linspace(0.1, 0.45, 50), *np.linspace(-0.45, -0.1, 50), 0.0135]
    guard = fit_guard(refresh([*flips, *right], [True] * 10 + [False] * 101), IDENTITY)
    assert (guard.low, guard.high) == (0.01, 0.017)
    all_of_them = fit_guard(refresh([*flips, *right], [True] * 10 + [False] * 101), IDENTITY, 1.0)
    assert (all_of_them.low, all_of_them.high) == (-0.5, 0.5)
    nine = fit_guard(refresh([*flips, *right], [True] * 10 + [False] * 101), IDENTITY, 0.9)
    assert nine.high - nine.low < 0.6


def test_without_flips_there_is_no_guard():
    assert fit_guard(refresh([0.1, -0.2], [False, False]), IDENTITY) is None
    with pytest.raises(ValueError, match="a part of the flips"):
        fit_guard(refresh([0.1], [True]), IDENTITY, 0.0)


def test_one_version_alone_is_never_at_risk():
    guard = Guard(-np.inf, np.inf, IDENTITY)
    assert guard.at_risk(np.array([0.0, np.inf, -np.inf])).tolist() == [True, False, False]
    assert Guard(0.1, 0.2, IDENTITY).at_risk(np.array([0.1, 0.2, 0.0999, 0.2001])).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_stored_and_read_it_is_the_same():
    guard = Guard(-0.1, 0.2, Calibration(1.5, -0.2))
    assert Guard.of(guard.stored()) == guard


def test_served_it_looks_through_the_maps_of_the_rows():
    guard = Guard(-0.1, 0.2, Calibration(1.5, -0.2))
    stored, own = Calibration(2.0, 0.3), Calibration(0.7, 0.1)
    served = guard.served(stored, stored.after(own))
    raw_stored, raw_renewed = np.array([0.4, 0.6]), np.array([0.5, 0.9])
    fitted_margin = own.apply(raw_renewed) - raw_stored
    served_margin = stored.after(own).apply(raw_renewed) - stored.apply(raw_stored)
    np.testing.assert_array_equal(served.at_risk(served_margin), guard.at_risk(fitted_margin))
    # Merged, a renewed row is ahead of a stored one exactly where the fitted map puts it ahead.
    np.testing.assert_allclose(
        served.merge.apply(stored.after(own).apply(raw_renewed)),
        stored.apply(guard.merge.apply(raw_renewed)),
    )


def test_what_it_costs_and_brings_is_counted_on_unseen_queries():
    rng = np.random.default_rng(0)
    n = 1000
    margins = rng.uniform(-1, 1, n)
    wrong = np.abs(margins) < 0.1
    half = (np.arange(n) % 2).astype(np.int64)
    found = cross_fit_guard(refresh(margins, wrong), half, (IDENTITY, IDENTITY), IDENTITY, rng)
    assert found.share == pytest.approx(0.08, abs=0.02)
    assert found.covered == pytest.approx(0.8, abs=0.05)
    assert found.healed == found.covered
    assert found.broken == 0
    assert found.effect.nfr[1] == pytest.approx(found.effect.nfr[0] * (1 - found.covered))
    useless = cross_fit_guard(
        refresh(margins, wrong, systems_right=False), half, (IDENTITY, IDENTITY), IDENTITY, rng
    )
    assert useless.healed == 0
    assert useless.effect.nfr[1] == useless.effect.nfr[0]


def test_what_the_merge_loses_is_counted_as_broken():
    margins = np.linspace(-0.5, 0.5, 40)
    wrong = np.abs(margins) > 0.3
    half = (np.arange(40) % 2).astype(np.int64)
    found = cross_fit_guard(
        refresh(margins, wrong, systems_right=False),
        half,
        (IDENTITY, IDENTITY),
        IDENTITY,
        np.random.default_rng(0),
    )
    assert found.broken > 0
    assert found.effect.nfr[1] > found.effect.nfr[0]
