"""The benchmark of the pre-training: its interval and tables, by hand."""

from __future__ import annotations

import pytest

from bench import cstp


def test_the_interval_of_a_share_is_wilsons():
    low, high = cstp.wilson(20, 100)
    assert (low, high) == (pytest.approx(0.1334, abs=1e-4), pytest.approx(0.2888, abs=1e-4))


def test_heads_are_pooled_and_systems_averaged_over_the_seeds():
    one = {
        "heads": dict.fromkeys(cstp.ASKED, (10, 40, 0.2)),
        "retrieval": dict.fromkeys(cstp.SYSTEMS, (0.1, 0.2, 0.3)),
    }
    two = {
        "heads": dict.fromkeys(cstp.ASKED, (20, 40, 0.2)),
        "retrieval": dict.fromkeys(cstp.SYSTEMS, (0.3, 0.2, 0.1)),
    }
    said = cstp.markdown([one, two])
    assert "| temporal | 0.375 |" in said
    assert "0.250 / 0.500 | 80 |" in said
    assert "| v2 on v1 | .200 ±" in said
    rows = cstp.rows([one, two])
    assert [row.value for row in rows] == [0.375] * 5 + [pytest.approx(0.2)] * len(cstp.SYSTEMS)
