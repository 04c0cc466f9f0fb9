"""The CPU's benchmark of uncertainty: what its rows stand for, in a small size."""

from __future__ import annotations

import json

import pytest

from bench import uncertainty
from bench.gpu_uncertainty import Size

TINY = Size(N=600, C=20, d=16, B=50, square=64)


def test_a_quick_run_measures_rows_7_and_8_and_claims_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty, "SMALL", TINY)
    monkeypatch.setattr("bench.gpu_uncertainty.can_compile", lambda: False)
    said: list[str] = []
    result = uncertainty.run(repeats=2, quick=True, say=said.append, folder=tmp_path)
    assert [row["row"] for row in result["rows"]] == [7] * 5 + [8] * 2
    assert all(row["holds"] is None for row in result["rows"])
    assert all(", identical," in row["name"] for row in result["rows"][1:4])
    assert json.loads((tmp_path / "uncertainty.json").read_text()) == result
    assert len(said) == 3


def test_the_scratch_that_is_measured_grows_with_what_scoring_holds(monkeypatch):
    """One to three (rows, C) float32 buffers, as far as they are touched at once: more prototypes, more scratch."""
    if not uncertainty.STATUS.is_file():
        pytest.skip("the system does not say how much memory was used at most")
    few, many = (uncertainty.scratch(Size(2048, C, 16, 50, 64))[0].value for C in (500, 5000))
    assert few < 4 * 4 * 512 * 500 / 1e6 + 6
    buffer = 4 * 512 * (5000 - 500) / 1e6
    assert 0.9 * buffer < many - few < 32
