from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.metrics import top_k
from orchestrator.index import IndexOptions, torch_flat
from orchestrator.index.torch_flat import TorchFlat


def doubles(n, dim=8, kinds=7, seed=0):
    """Few different vectors of small whole numbers: sums are exact, so equal vectors score equally in every order."""
    random = np.random.default_rng(seed)
    return random.integers(-2, 3, size=(kinds, dim)).astype(np.float32)[random.integers(kinds, size=n)]


@pytest.fixture(params=[16, 64, 65_536])
def blocks(request, monkeypatch):
    monkeypatch.setattr(torch_flat, "GALLERY_BLOCK", request.param)
    monkeypatch.setattr(torch_flat, "QUERY_BLOCK", 16)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 10, 200])
def test_equal_scores_go_to_the_lower_row_within_blocks_and_across(k):
    gallery, queries = doubles(333), doubles(50, seed=1)
    index = TorchFlat(gallery)
    scores, rows = index.search(queries, k)
    exact_scores, exact_rows = top_k(queries, gallery, k)
    np.testing.assert_array_equal(rows, exact_rows)
    np.testing.assert_array_equal(scores, exact_scores)
    allowed = np.random.default_rng(2).random(333) < 0.2
    places = np.flatnonzero(allowed)
    _, rows = index.search(queries, k, allowed)
    width = min(k, len(places))
    np.testing.assert_array_equal(rows[:, :width], places[top_k(queries, gallery[places], width)[1]])
    assert (rows[:, width:] == -1).all()


def test_room_for_late_rows_is_no_row():
    index = TorchFlat(doubles(40))
    index.grow(81)  # room for more than that
    assert len(index.vectors()) == 81
    _, rows = index.search(-np.ones((1, 8), np.float32), 200)
    assert sorted(rows[0, :81]) == list(range(81))
    assert (rows[0, 81:] == -1).all()
    with pytest.raises(IndexError, match="row 81 of 81"):
        index.replace(np.array([0, 81]), np.ones((2, 8), np.float32))


def test_it_goes_where_it_is_told():
    assert TorchFlat(doubles(3), IndexOptions(device="cpu"))._device.type == "cpu"
