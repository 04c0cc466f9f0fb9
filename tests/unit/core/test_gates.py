"""What gates answer, and what follows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.flips import FlipCounts
from orchestrator.core.gates import (
    MEASURES,
    Effect,
    Gate,
    Measured,
    Result,
    Sample,
    Tally,
    act,
    decide,
    least_mean,
    least_share,
    outside,
)

PASS, FAIL, INCONCLUSIVE = Result


def sample(negative=0, positive=0, n=1000, *, previous=0, embedded=0, quarantined=0, churn=None, compared=0):
    right = (n - negative - positive) // 2
    return Sample(
        FlipCounts(right, negative, positive, n - negative - positive - right),
        FlipCounts(n - previous, previous, 0, 0),
        embedded,
        quarantined,
        churn,
        compared,
    )


def answer(measure, found, **gate):
    gate = Gate("g", measure, **{"limit": 0.05, **gate})
    return decide(gate, MEASURES[measure](found, gate.confidence))


def tail(count, n, p):
    """P(X >= count) of a binomial, term by term."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count, n + 1))


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_least_share_is_where_so_many_would_be_a_surprise(n, data):
    """Clopper and Pearson's definition: at the bound, `count` or more has exactly the chance 1 - confidence."""
    count = data.draw(st.integers(1, n))
    confidence = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    bound = least_share(count, n, confidence)
    assert bound < count / n
    assert tail(count, n, bound) == pytest.approx(1 - confidence, rel=1e-6)
    assert least_share(0, n, confidence) == 0.0


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_least_mean_is_never_too_high_and_is_where_hoeffdings_bound_says(n, data):
    """Of all values in 0..1 coins vary most: seen so often, the bound must lie below the exact one of a share."""
    count = data.draw(st.integers(1, n))
    confidence = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    mean = count / n
    bound = least_mean(mean, n, confidence)
    assert 0 < bound <= least_share(count, n, confidence) < mean
    divergence = mean * math.log(mean / bound) + (
        (1 - mean) * math.log((1 - mean) / (1 - bound)) if mean < 1 else 0
    )
    assert math.exp(-n * divergence) == pytest.approx(1 - confidence, rel=1e-6)
    assert least_mean(0.0, n, confidence) == 0.0


@pytest.mark.parametrize("expected", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_mean_is_said_to_be_above_what_is_expected_as_rarely_as_promised(expected, confidence):
    """Exactly, over all outcomes of 40 queries that each lose all of their answers, or none."""
    n = 40
    wrong = math.fsum(
        math.comb(n, i) * expected**i * (1 - expected) ** (n - i)
        for i in range(n + 1)
        if least_mean(i / n, n, confidence) > expected
    )
    assert 0 < wrong <= 1 - confidence


@pytest.mark.parametrize(
    ("churn", "compared", "expected"),
    [
        (0.3, 1000, PASS),
        (0.31, 1000, INCONCLUSIVE),
        (0.4, 1000, FAIL),
        (0.4, 120, INCONCLUSIVE),
        (0.9, 99, INCONCLUSIVE),
        (None, 0, INCONCLUSIVE),
    ],
)
def test_churn_passes_fails_or_cannot_tell(churn, compared, expected):
    decision = answer("churn", sample(churn=churn, compared=compared), limit=0.3)
    assert (decision.result, decision.value, decision.n) == (expected, churn, compared)


@pytest.mark.parametrize(
    ("negative", "n", "expected"),
    [
        (50, 1000, PASS),  # .05 is not above .05
        (51, 1000, INCONCLUSIVE),  # above, but by chance one time in two
        (80, 1000, FAIL),  # surely above
        (8, 100, INCONCLUSIVE),  # the same share of fewer queries
        (99, 99, INCONCLUSIVE),  # however bad: 99 are too few
        (0, 0, INCONCLUSIVE),  # nothing ran
    ],
)
def test_a_negative_flip_rate_passes_fails_or_cannot_tell(negative, n, expected):
    decision = answer("negative_flip_rate", sample(negative, n=n))
    assert decision.result is expected
    assert decision.n == n
    assert decision.limit == 0.05
    assert decision.value == (negative / n if n else None)
    assert decision.error == (n == 0)


def test_each_measure_reads_what_it_is_named_for():
    found = sample(
        negative=30, positive=10, n=400, previous=8, embedded=900, quarantined=100, churn=0.2, compared=500
    )
    values = {name: measure(found, 0.95) for name, measure in MEASURES.items()}
    assert {name: (each.value, each.n) for name, each in values.items()} == {
        "negative_flip_rate": (0.075, 400),
        "stage_flip_rate": (0.02, 400),
        "recall_loss": (0.05, 400),
        "quarantine_rate": (0.1, 1000),
        "churn": (0.2, 500),
        "click_loss_rate": (0.075, 400),
    }


@pytest.mark.parametrize(
    ("negative", "positive", "expected"),
    [
        (10, 20, PASS),  # recall was won
        (20, 20, PASS),
        (21, 20, INCONCLUSIVE),  # lost, but McNemar would not swear to it
        (40, 20, FAIL),  # p = .0067 one-sided
        (5, 0, FAIL),  # p = 1/32
        (4, 0, INCONCLUSIVE),  # p = 1/16
    ],
)
def test_lost_recall_is_judged_by_mcnemars_exact_test(negative, positive, expected):
    assert answer("recall_loss", sample(negative, positive), limit=0.0).result is expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_or_no_number_never_passes(value):
    decision = decide(Gate("g", "recall_loss", 0.05), Measured(value, 1000, value))
    assert (decision.result, decision.value, decision.error) == (INCONCLUSIVE, None, True)


def test_what_could_not_be_measured_says_why():
    decision = decide(Gate("g", "recall_loss", 0.05), Measured(None, 0, None, "there is no query set 'x'"))
    assert (decision.result, decision.reason, decision.error) == (
        INCONCLUSIVE,
        "there is no query set 'x'",
        True,
    )


def test_an_outside_number_is_certain_and_a_silent_one_says_why():
    gate = Gate("g", "sql", 0.05, minimum_n=0)
    assert decide(gate, outside(0.06)).result is FAIL
    assert decide(gate, outside(0.05)).result is PASS
    decision = decide(gate, outside(None, "the database did not answer"))
    assert (decision.result, decision.reason, decision.error) == (
        INCONCLUSIVE,
        "the database did not answer",
        True,
    )


def effects(gate, *answers):
    tally, found = Tally(), []
    for each in answers:
        value = {PASS: 0.0, FAIL: 1.0, INCONCLUSIVE: 0.06, "error": None}[each]
        measured = Measured(value, 1000, 0.0 if each is INCONCLUSIVE else value)
        effect, tally = act(gate, decide(gate, measured), tally)
        found.append(effect.value)
    return found


def test_a_failure_has_the_gates_effect_and_one_that_cannot_tell_pauses_and_never_rolls_back():
    for effect in Effect:
        gate = Gate("g", "negative_flip_rate", 0.05, effect=effect)
        assert effects(gate, PASS, FAIL) == ["none", effect.value]
        pauses = effect in (Effect.PAUSE, Effect.ROLLBACK)
        assert effects(gate, INCONCLUSIVE) == ["pause" if pauses else effect.value]


def test_limits_count_answers_of_one_kind_in_a_row():
    gate = Gate("g", "negative_flip_rate", 0.05, failure_limit=1, inconclusive_limit=2, error_limit=1)
    assert effects(gate, FAIL, PASS, FAIL, FAIL) == ["none", "none", "none", "pause"]
    assert effects(gate, FAIL, INCONCLUSIVE, FAIL, FAIL) == ["none", "none", "none", "pause"]
    assert effects(gate, *[INCONCLUSIVE] * 3) == ["none", "none", "pause"]
    assert effects(gate, "error", "error") == ["none", "pause"]
    assert effects(gate, "error", PASS, "error", "error") == ["none", "none", "none", "pause"]


def test_alternating_between_error_and_chance_does_not_slip_through():
    gate = Gate("g", "negative_flip_rate", 0.05, inconclusive_limit=1, error_limit=1)
    assert effects(gate, "error", INCONCLUSIVE, "error") == ["none", "none", "pause"]


def test_a_dry_run_is_counted_and_has_no_effect():
    gate = Gate("g", "negative_flip_rate", 0.05, effect=Effect.ROLLBACK, dry_run=True)
    assert effects(gate, FAIL, INCONCLUSIVE, "error") == ["none", "none", "none"]
