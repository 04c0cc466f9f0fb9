"""The benchmark of plots, in small: both directions and both measures, of every state of a refresh."""

from __future__ import annotations

import json

from bench import ptvd


def test_a_small_run_measures_every_state_and_what_overlaps_is_never_less_than_what_is_exact(tmp_path):
    said = []
    document = ptvd.run(say=said.append, folder=tmp_path, seeds=(0,), episodes=10, steps=40)
    assert json.loads((tmp_path / "ptvd.json").read_text()) == document
    assert said == ["features", "seed 0: tower, both directions"]
    value = {row["name"]: row["value"] for row in document["rows"]}
    assert len(value) == 2 * 2 * 3
    exact, overlapping = ptvd.MEASURES
    for direction in ptvd.DIRECTIONS:
        for state in ptvd.STATES:
            both = [value[f"{direction}, {measure}, {state}, 1 seeds"] for measure in (exact, overlapping)]
            assert 5 / document["host"]["queries"] < both[0] <= both[1] <= 1, "far better than a guess"
    by_direction = [[v for name, v in value.items() if name.startswith(each)] for each in ptvd.DIRECTIONS]
    assert by_direction[0] != by_direction[1]
    by_state = [[v for name, v in value.items() if f", {each}, " in name] for each in ptvd.STATES]
    assert len({tuple(each) for each in by_state}) == 3, "the gallery changes as it is refreshed"
    told = (tmp_path / "ptvd.md").read_text()
    for row in document["rows"]:
        assert f"| {row['value']:.3f} (" in told
