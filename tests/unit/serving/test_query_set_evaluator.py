"""What the evaluator of one query set takes for settled: the ledger's part is tested with a ledger."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.core.causes import Cause
from orchestrator.core.metrics import Relevance
from orchestrator.core.strategies import STRATEGIES
from orchestrator.serving.evaluator import QuerySetEvaluator

QUERIES = np.array([[1, 0]], np.float32)
OLD = np.array([[1, 0], [0, 1], [0.5, 0]], np.float32)  # row 0 answers the query, and is found
WRONG = np.array([[2, 0]], np.float32)
NONE = np.empty(0, np.int64)


def evaluator(deployed, strategy="reembed", relevance="pairs", queries_then=QUERIES):
    queries = SimpleNamespace(
        row=SimpleNamespace(id=1, name="asked", relevance=relevance),
        relevance=Relevance.from_pairs(1, [0], [0]),
        queries=(SimpleNamespace(attributes={}),),
    )
    rollout = SimpleNamespace(id=1, how=STRATEGIES[strategy], n_items=3)
    return QuerySetEvaluator(
        rollout, queries, queries_then, QUERIES, OLD, deployed.copy(), [1], 10, churn_k=2, churn_p=0.9
    )


def causes(stages):
    return {e.cause for e in stages.by_k[1].events if not e.healed}


def test_an_item_that_cannot_be_embedded_keeps_nothing_waiting():
    followed = evaluator(OLD)
    followed.deployed()
    assert causes(followed.apply(np.array([1]), WRONG, NONE)) == {Cause.MIXED_STAGE}
    stages = followed.apply(NONE, WRONG[:0], np.array([0]))  # row 0 is in quarantine
    assert stages.by_k[1].blamed == (0,)


def test_an_item_without_a_vector_keeps_nothing_waiting():
    deployed = OLD.copy()
    deployed[0] = 0
    deployed[1] = WRONG
    followed = evaluator(deployed)
    assert causes(followed.deployed()) == {Cause.MIXED_STAGE}, "the wrong answer may still leave"
    assert followed.apply(np.array([1]), WRONG, NONE).by_k[1].blamed == (0,)


@pytest.mark.parametrize("strategy", ["transform", "query-adapter"])
def test_where_nothing_is_embedded_anew_nothing_is_the_mixtures(strategy):
    deployed = OLD.copy()
    deployed[1] = WRONG
    assert causes(evaluator(deployed, strategy).deployed()) == {Cause.MODEL}
    assert causes(evaluator(deployed).deployed()) == {Cause.MIXED_STAGE}


def test_churn_is_measured_deeper_than_flips_and_changed_slices_only_are_told():
    followed = evaluator(OLD)
    stages = followed.deployed()
    assert (stages.churn["all"].n, stages.churn["all"].shared) == (1, (1, 2))
    assert stages.churned == {"all"}, "the first stage tells of every slice"
    stages = followed.apply(np.array([1]), WRONG, NONE)  # rows 1, 0 instead of 0, 2
    assert (stages.churn["all"].shared, stages.churned) == ((0, 1), {"all"})
    assert followed.apply(np.array([1]), WRONG, NONE).churned == frozenset()


def test_without_relevance_nothing_is_right_or_wrong_and_churn_is_there():
    stages = evaluator(OLD, relevance="none").deployed()
    assert (stages.by_k, stages.slices, stages.counts(1, "all")) == ({}, {}, None)
    assert stages.churn["all"].overlap(2) == 1.0


def test_a_query_that_could_not_be_read_is_not_compared():
    followed = evaluator(OLD, relevance="none", queries_then=np.zeros_like(QUERIES))
    assert followed.deployed().churn["all"].n == 0
