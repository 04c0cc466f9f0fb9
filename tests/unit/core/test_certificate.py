"""The verdict over a measured pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.core.certificate import Measurement, Verdict, judge
from orchestrator.core.flips import FlipCounts
from orchestrator.core.significance import Interval

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


@pytest.mark.parametrize(("loss", "certified"), [(0.019, False), (0.02, True), (0.5, True)])
def test_a_loss_that_is_accepted_is_no_reason_to_refuse_and_is_named(loss, certified):
    judgement = judge(replace(GOOD, new_old=0.69, curve=(0.69, 0.68, 0.71)), loss=loss)
    assert judgement.certified is certified
    assert f"a loss of {loss:g} is accepted" in judgement.reason
    assert judgement.safe_refresh is False


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


CLOSE = replace(GOOD, start_difference=Interval(-0.02, 0.03), lowest_difference=Interval(-0.03, 0.02))


def test_without_a_tolerance_the_point_estimate_decides_whatever_the_interval_says():
    assert judge(CLOSE).certified
    assert judge(replace(CLOSE, lowest_difference=Interval(-0.5, 0.0))).certified


@pytest.mark.parametrize(
    ("tolerance", "verdict", "where"),
    [
        (0.01, Verdict.INCONCLUSIVE, "at the start"),
        (0.025, Verdict.INCONCLUSIVE, "along the refresh"),
        (0.03, Verdict.CERTIFIED, "never below"),
        (0.2, Verdict.CERTIFIED, "never below"),
    ],
)
def test_a_loss_beyond_the_tolerance_that_is_not_excluded_is_inconclusive(tolerance, verdict, where):
    judgement = judge(CLOSE, tolerance=tolerance)
    assert judgement.verdict is verdict
    assert where in judgement.reason


def test_a_tolerance_neither_lets_a_measured_loss_pass_nor_puts_it_in_doubt():
    for change in ({"new_old": 0.699}, {"curve": (0.71, 0.699, 0.80)}):
        for tolerance in (0.001, 0.5):
            assert judge(replace(CLOSE, **change), tolerance=tolerance).verdict is Verdict.REFUSED


@pytest.mark.parametrize("name", ["start_difference", "lowest_difference"])
def test_a_tolerance_without_an_interval_is_inconclusive_and_never_passes(name):
    judgement = judge(replace(CLOSE, **{name: None}), tolerance=0.5)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "no interval" in judgement.reason


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, math.nan])
def test_a_tolerance_that_is_no_difference_of_recalls_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        judge(GOOD, tolerance=tolerance)


def flips(negative, positive):
    return FlipCounts(500 - negative - positive, negative, positive, 0)


def test_a_refusal_says_how_sure_it_is():
    sure = judge(replace(GOOD, new_old=0.5, start_flips=flips(60, 12), worst_flips=flips(80, 3)))
    assert (sure.verdict, "chance" in sure.reason) == (Verdict.REFUSED, False)
    assert "60 queries turned wrong and 12 right, p = 8.1e-09" in sure.reason
    unsure = judge(replace(GOOD, curve=(0.71, 0.69, 0.8), start_flips=flips(1, 9), worst_flips=flips(9, 6)))
    assert unsure.verdict is Verdict.REFUSED, "a loss that may be chance is refused all the same"
    assert "9 queries turned wrong and 6 right, p = 0.61, which may be chance" in unsure.reason


def test_too_few_queries_stay_inconclusive_however_one_sided_their_flips_are():
    few = replace(GOOD, n_queries=50, new_old=0.1, start_flips=flips(40, 0), worst_flips=flips(40, 0))
    assert judge(few).verdict is Verdict.INCONCLUSIVE
