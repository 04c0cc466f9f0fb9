"""The certificate matrix: which cell shows what."""

from __future__ import annotations

import pytest

from orchestrator.dashboard.certificates import cells_of, shade


def certificate(query, gallery, verdict, new_old, adapter=None, **measured):
    return {
        "query_model": query, "gallery_model": gallery, "adapter": adapter, "verdict": verdict,
        "measured": {"new_old": new_old, **measured},
    }  # fmt: skip


def test_a_pair_stands_in_its_cell_the_certified_way_first():
    rows = [
        certificate("new", "old", "refused", 0.1),
        certificate("new", "old", "certified", 0.9, adapter="lift"),
        certificate("old", "new", "inconclusive", None),
    ]
    cells = cells_of(["old", "new"], rows)
    assert [(each["verdict"], each["adapter"], each["value"]) for each in cells["new", "old"]] == [
        ("certified", "lift", 0.9), ("refused", None, 0.1),
    ]  # fmt: skip
    assert [(each["verdict"], each["value"], each["shade"]) for each in cells["old", "new"]] == [
        ("inconclusive", None, 0)
    ]


def test_the_diagonal_is_what_was_measured_of_each_model_alone():
    cells = cells_of(["old", "new"], [certificate("new", "old", "refused", 0.1, old_old=0.85, new_new=0.95)])
    assert {pair: rows[0]["value"] for pair, rows in cells.items() if pair[0] == pair[1]} == {
        ("old", "old"): 0.85, ("new", "new"): 0.95,
    }  # fmt: skip
    assert cells["old", "old"][0]["verdict"] is None


def test_through_a_query_adapter_nothing_is_said_of_the_new_model_alone():
    row = certificate(
        "new", "old", "certified", 0.8, adapter="back", adapter_maps="queries", old_old=0.7, new_new=0.8
    )
    assert ("new", "new") not in cells_of(["old", "new"], [row])


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 0), (0.0, 0), (0.19, 0), (0.5, 2), (0.99, 4), (1.0, 4)]
)
def test_a_deeper_shade_is_a_higher_recall(value, expected):
    assert shade(value) == expected
