"""Which strategy goes with which adapter."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.core.strategies import STRATEGIES, Direction, UnfitStrategyError, choose

DIRECTIONS = (None, *Direction)


@pytest.mark.parametrize(
    ("direction", "name"),
    [(None, "reembed"), (Direction.FORWARD, "transform-then-reembed"), (Direction.BACKWARD, "query-adapter")],
)
def test_without_a_name_the_adapter_decides(direction, name):
    assert choose(None, direction).name == name


def test_a_codec_of_stored_embeddings_recodes_them_unless_told_otherwise():
    assert choose(None, None, recodable=True).name == "recode"
    assert choose("recode", None, recodable=True).name == "recode"
    assert choose("reembed", None, recodable=True).name == "reembed"
    assert choose(None, Direction.BACKWARD, recodable=True).name == "query-adapter"
    with pytest.raises(UnfitStrategyError, match="takes no adapter"):
        choose("recode", Direction.FORWARD, recodable=True)
    with pytest.raises(UnfitStrategyError, match="needs a codec"):
        choose("recode", None)


def test_a_strategy_is_chosen_with_its_adapter_and_refused_with_any_other():
    fits = {
        ("reembed", None),
        ("transform-then-reembed", Direction.FORWARD),
        ("transform", Direction.FORWARD),
        ("query-adapter", Direction.BACKWARD),
    }
    for name, direction in itertools.product(STRATEGIES, DIRECTIONS):
        if (name, direction) in fits:
            assert choose(name, direction).name == name
        else:
            with pytest.raises(UnfitStrategyError, match=name):
                choose(name, direction)


def test_an_unknown_strategy_names_those_there_are():
    with pytest.raises(
        UnfitStrategyError, match="reembed, recode, transform-then-reembed, transform, query-adapter"
    ):
        choose("sideways", None)


def test_what_each_strategy_does():
    told = {s.name: (s.lifts, s.reembeds, s.maps_queries, s.holds_vectors) for s in STRATEGIES.values()}
    assert told == {
        "reembed": (False, True, False, True),
        "recode": (False, True, False, True),
        "transform-then-reembed": (True, True, False, True),
        "transform": (True, False, False, True),
        "query-adapter": (False, False, True, False),
    }
