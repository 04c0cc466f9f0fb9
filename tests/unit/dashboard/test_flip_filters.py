"""What the flip explorer's address may ask for."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from orchestrator.dashboard.flips import Filters, compared
from orchestrator.dashboard.paging import LAST, Page, number_of
from orchestrator.dashboard.site import query_string
from orchestrator.errors import UsageError


def test_what_is_empty_filters_nothing():
    assert Filters.of(QueryParams("kind=&k=&page=3&other=1")).bound() == {}


def test_every_filter_is_bound():
    asked = "queryset=a&kind=negative&reference=old_system&cause=model&k=10&fate=open&slice=tenant=acme=x"
    assert Filters.of(QueryParams(asked)).bound() == {
        "queryset": "a", "kind": "negative", "reference": "old_system", "cause": "model", "k": 10, "fate": "open",
        "attribute": "tenant", "attribute_value": "acme=x",
    }  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    ["kind=sideways", "reference=old", "cause='", "fate=maybe", "k=0", "k=x", "k=101", "k=²", "k=1e1", "k=" + "9" * 5000,
     "slice=tenant", "slice==x", "slice=tenant="],
)  # fmt: skip
def test_what_no_filter_has_is_named(asked):
    with pytest.raises(UsageError, match=asked.partition("=")[0]):
        Filters.of(QueryParams(asked))


@pytest.mark.parametrize(
    ("text", "number"),
    [(None, 1), ("", 1), ("0", 1), ("7", 7), ("-1", 1), ("x", 1), ("²", 1), ("9" * 9, LAST), ("9" * 50, 1)],
)
def test_what_is_no_page_is_the_first(text, number):
    assert number_of(text) == number


def test_a_page_knows_its_neighbours():
    assert (Page(1, 20, more=False).previous, Page(1, 20, more=False).following) == (None, None)
    middle = Page(3, 20, more=True, total=70)
    assert (middle.previous, middle.following, middle.offset) == (2, 4, 40)


def test_an_address_keeps_what_was_chosen_and_is_encoded():
    assert query_string({"kind": "negative", "cause": None, "slice": "a&b=c d"}, page=2) == (
        "?kind=negative&slice=a%26b%3Dc+d&page=2"
    )
    assert query_string({}) == ""


@pytest.mark.parametrize(
    ("reference", "opened", "before"),
    [
        ("old_system", 4, ("a", 6, 4)),
        ("old_system", 9, ("a", 6, 9)),
        ("previous_stage", 4, ("a", 6, 4)),  # when it was deployed, the stage before was the old system
        ("previous_stage", 9, ("a", 7, 8)),
    ],
)
def test_the_answer_before_was_compared_under_what_served_then(reference, opened, before):
    flip = {"rollout": 7, "reference": reference, "opened_seq": opened, "old_item": "a", "new_item": "b"}
    assert compared(flip, deployed=4) == (before, ("b", 7, opened))
    assert compared({**flip, "old_item": None, "new_item": None}, deployed=4) == (None, None)
