"""The verdict over a module, and which modules a rollout would break."""

from __future__ import annotations

import math

import pytest

from orchestrator.core.certificate import Verdict
from orchestrator.core.contracts import Broken, Contract, ModuleMeasurement, Obstacle, broken, judge_module
from orchestrator.core.significance import Interval

SURE = Interval(-0.3, -0.1)


@pytest.mark.parametrize(
    ("old", "new", "n", "difference", "more", "verdict", "said"),
    [
        (0.5, 0.5, 30, None, {}, Verdict.CERTIFIED, "0.5000 with the new model and 0.5000 with its own"),
        (0.5, 0.5, 29, None, {}, Verdict.INCONCLUSIVE, "a mean of 29 values, at least 30"),
        (0.5, 0.3, 99, SURE, {}, Verdict.REFUSED, "0.3000"),
        (0.5, 0.3, 99, Interval(-0.5, 0.1), {}, Verdict.REFUSED, "may be chance"),
        (0.5, 0.3, 99, SURE, {"loss": 0.2}, Verdict.CERTIFIED, "a loss of 0.2 is accepted"),
        (0.5, 0.3, 99, SURE, {"loss": 0.19}, Verdict.REFUSED, "a loss of 0.19 is accepted"),
        (0.5, 0.5, 99, Interval(-0.06, 0.06), {"tolerance": 0.05}, Verdict.INCONCLUSIVE, "0.05 is not excluded"),
        (0.5, 0.5, 99, Interval(-0.06, 0.06), {"tolerance": 0.05, "loss": 0.02}, Verdict.CERTIFIED, ""),
        (0.5, 0.5, 99, None, {"tolerance": 0.05}, Verdict.INCONCLUSIVE, "no interval"),
        (None, 0.5, 99, None, {}, Verdict.INCONCLUSIVE, "missing"),
        (0.5, math.nan, 99, None, {}, Verdict.INCONCLUSIVE, "finite"),
    ],
)  # fmt: skip
def test_what_was_measured_decides_and_the_interval_says_how_sure_that_is(
    old, new, n, difference, more, verdict, said
):
    found = judge_module(ModuleMeasurement(old, new, n, difference), **more)
    assert found.verdict is verdict
    assert said in found.reason


def test_a_loss_is_a_difference_of_metrics():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        judge_module(ModuleMeasurement(0.5, 0.5, 99), loss=1.5)


def contract(module, verdict=None, *, space="old", dim=32, serves=True, reason=""):
    return Contract(module, space, dim, serves, verdict, reason)


def test_modules_in_use_are_broken_by_what_was_refused_or_never_measured_or_has_another_dim():
    known = [
        contract("fine", Verdict.CERTIFIED),
        contract("unmeasured"),
        contract("refused", Verdict.REFUSED, reason="worse"),
        contract("elsewhere", serves=False),
        contract("at-home", space="new"),
        contract("wide", Verdict.REFUSED, dim=64),
    ]
    assert broken(known, "new", 32, changes_space=True) == [
        Broken("unmeasured", 32, Obstacle.UNMEASURED),
        Broken("refused", 32, Obstacle.REFUSED, "worse"),
        Broken("wide", 64, Obstacle.DIM),
    ]
    assert broken(known, "new", 32, changes_space=False) == []
