"""How two answers are laid beside each other."""

from __future__ import annotations

import pytest

from orchestrator.core.churn import shared_rows
from orchestrator.ledger.rows import ItemRow
from orchestrator.serving.answers import Answer, Hit
from orchestrator.serving.shadow import _lists, _outcome


def answer(*rows: int, labels: str = "") -> Answer:
    named = labels or "a" * len(rows)
    hits = tuple(Hit(r, str(r), "", label, 1.0, 1) for r, label in zip(rows, named, strict=True))
    return Answer(hits, "m", 1, 0.0, 1)


@pytest.mark.parametrize(
    ("old", "new", "shared"),
    [
        ((1, 2, 3), (1, 2, 3), [1, 2, 3]),
        ((1, 2, 3), (2, 1, 4), [0, 2, 2]),
        ((1, 2, 3, 9), (1, 2, 3, 8), [1, 2, 3]),  # deeper than is compared
        ((1, 2), (1, 2), [1, 2, 3]),  # a gallery of two: nothing is missing
        ((1, 2), (1, 2, 5), [1, 2, 2]),  # only the new system has a third
        ((1, 2, 5), (1,), [1, 1, 1]),
        ((), (), [1, 2, 3]),
        ((), (4,), [0, 1, 2]),
    ],
)
def test_rows_in_common_at_every_depth(old, new, shared):
    lists = _lists(answer(*old).hits, answer(*new).hits, 3)
    assert shared_rows(*lists).tolist() == [shared]


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ("xab", "xab", "both_right"),
        ("xab", "xba", "negative_flips"),
        ("xba", "xab", "positive_flips"),
        ("xba", "xba", "both_wrong"),
        ("x", "xa", "positive_flips"),  # the old system found nothing but the item itself
    ],
)
def test_the_first_other_answer_counts_by_label(old, new, outcome):
    item = ItemRow(row=0, key="0", uri="", label="a")
    found = [answer(*range(len(labels)), labels=labels) for labels in (old, new)]
    assert _outcome(item, *found) == outcome
