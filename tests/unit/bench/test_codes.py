from __future__ import annotations

import json

import pytest

from bench import code_peers, codes
from models.errors import UsageError


def test_a_quick_run_measures_every_contender_and_claims_nothing(tmp_path):
    said: list[str] = []
    result = codes.run(repeats=1, quick=True, only=["million"], say=said.append, folder=tmp_path)
    assert json.loads((tmp_path / "codes.json").read_text()) == result
    rows = result["rows"]
    assert {row["row"] for row in rows} == {13}
    assert {row["holds"] for row in rows} == {None}
    assert [row["target"] for row in rows if row["target"] != "-"] == ["≥ 0.6", "≥ 11", "> 1"]
    names = "\n".join(row["name"] for row in rows)
    for kind in ("reading", "one query", "256 queries", "recall@10"):
        assert kind in names
    for contender in (
        "codes",
        "codes-ivf",
        "BinaryFlat",
        "PQFastScan",
        "RaBitQFastScan 2 bits",
        "SQ4",
        "SQ8",
        "float32",
    ):
        assert contender in names
    recall = {row["name"].split(", ")[2]: row["value"] for row in rows if "recall@10" in row["name"]}
    assert recall["codes"] > recall["BinaryFlat 192 bits"]
    assert 0.9 < recall["SQ8"] <= 1


def test_an_unknown_part_is_named():
    with pytest.raises(UsageError, match="there is no part 'billion'"):
        codes.run(only=["billion"])


def test_peers_of_equal_bytes_take_no_more_than_codes(tmp_path):
    data = codes.clustered(1000, 32, 0)
    ours = code_peers.codes("codes", code_peers.fitted(data.gallery, 32, tmp_path / "codec", 0), data.gallery)
    every = list(code_peers.peers(data.gallery, 32, 0))
    assert {one.name.split()[0] for one in every if one.equal} >= {"BinaryFlat", "PQFastScan"}
    for one in every:
        assert one.equal == (one.bytes_a_row <= ours.bytes_a_row)
        assert one.search(one.prepare(data.queries[:3]), 4).shape == (3, 4)
