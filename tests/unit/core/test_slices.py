"""Slices of queries by their attributes."""

from __future__ import annotations

import numpy as np

from orchestrator.core import slices
from orchestrator.core.slices import slices_of


def test_queries_of_one_value_are_one_slice_and_those_that_do_not_count_are_in_none():
    attributes = [{"tenant": "a"}] * 12 + [{"tenant": "b", "lang": "en"}] * 11 + [{}]
    found = slices_of(attributes, np.arange(1, 24))
    assert {name: queries.tolist() for name, queries in found.items()} == {
        "tenant=a": list(range(1, 12)),
        "tenant=b": list(range(12, 23)),
        "lang=en": list(range(12, 23)),
    }


def test_values_of_few_queries_share_a_slice():
    attributes = [{"tenant": "big"}] * 10 + [{"tenant": f"small {number}"} for number in range(9)]
    found = slices_of(attributes, np.arange(19))
    assert {name: len(queries) for name, queries in found.items()} == {"tenant=big": 10, "tenant=(other)": 9}


def test_no_more_than_the_largest_values_have_slices_of_their_own(monkeypatch):
    monkeypatch.setattr(slices, "MOST", 2)
    attributes = [{"a": value} for value, count in (("x", 11), ("y", 13), ("z", 12)) for _ in range(count)]
    found = slices_of(attributes, np.arange(36))
    assert {name: len(queries) for name, queries in found.items()} == {"a=y": 13, "a=z": 12, "a=(other)": 11}


def test_without_attributes_there_are_no_slices():
    assert slices_of([{}, {}], np.arange(2)) == {}
    assert slices_of([{"a": "b"}] * 20, np.empty(0, np.int64)) == {}
