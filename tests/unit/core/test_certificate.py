"""The verdict over a measured pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.core.certificate import Measurement, Verdict, judge

GOOD = Measurement(
    old_old=0.70, new_old=0.71, new_new=0.80, curve=(0.71, 0.74, 0.80), n_queries=500, best_best=0.82
)


def test_a_pair_that_never_does_worse_than_the_old_system_is_certified():
    judgement = judge(GOOD)
    assert judgement.certified
    assert "0.7100" in judgement.reason
    assert "0.7000" in judgement.reason


def test_equal_to_the_old_system_everywhere_is_enough():
    judgement = judge(replace(GOOD, new_old=0.70, curve=(0.70, 0.70, 0.80)))
    assert judgement.verdict is Verdict.CERTIFIED
    assert judgement.compatible is False, "METHODS.md asks for strictly better here"


def test_a_new_model_that_cannot_read_the_stored_gallery_is_refused():
    judgement = judge(replace(GOOD, new_old=0.001))
    assert (judgement.verdict, judgement.compatible) == (Verdict.REFUSED, False)
    assert "as stored" in judgement.reason


@pytest.mark.parametrize("change", [{"curve": (0.71, 0.69, 0.80)}, {"new_new": 0.69}])
def test_a_refresh_that_dips_below_the_old_system_on_its_way_or_at_its_end_is_refused(change):
    judgement = judge(replace(GOOD, **change))
    assert (judgement.verdict, judgement.safe_refresh, judgement.lowest) == (Verdict.REFUSED, False, 0.69)
    assert "0.6900" in judgement.reason


@pytest.mark.parametrize(
    "change",
    [
        {"old_old": None},
        {"new_old": None},
        {"new_new": None},
        {"curve": ()},
        {"curve": (0.71, math.nan, 0.8)},
        {"new_old": math.inf},
    ],
)
def test_what_was_not_measured_is_inconclusive_and_never_passes(change):
    judgement = judge(replace(GOOD, **change))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert not judgement.certified


def test_too_few_queries_neither_certify_nor_refuse():
    assert judge(replace(GOOD, n_queries=100)).verdict is Verdict.CERTIFIED
    for measured in (GOOD, replace(GOOD, new_old=0.1)):
        judgement = judge(replace(measured, n_queries=99))
        assert judgement.verdict is Verdict.INCONCLUSIVE
        assert "99" in judgement.reason
    assert judge(replace(GOOD, n_queries=20), minimum_queries=20).certified


def test_gain_and_tax_follow_their_formulas():
    judgement = judge(GOOD)
    assert judgement.update_gain == pytest.approx((0.71 - 0.70) / (0.82 - 0.70))
    assert judgement.gain_reference == "best_best"
    assert judgement.compatibility_tax == pytest.approx(0.02)


def test_without_an_unconstrained_model_the_gain_says_that_it_is_relative_to_the_new_one():
    judgement = judge(replace(GOOD, best_best=None))
    assert judgement.update_gain == pytest.approx(0.1)
    assert judgement.gain_reference == "new_new"
    assert judgement.compatibility_tax is None


def test_a_gain_over_nothing_is_missing():
    assert judge(replace(GOOD, best_best=0.70)).update_gain is None
