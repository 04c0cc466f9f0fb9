"""What the benchmarks feed to the system is what they say it is."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from bench import order_scores, write_extent
from bench.load_plan import HEADER, TRAILER, as_rows
from bench.stubs import NumberedTexts, PacedStub, Timed
from orchestrator.settings import Settings


def test_the_peers_rows_are_postgresqls_binary_copy_format():
    ranks = np.array([2, 0, 70_000], np.uint32)
    data = as_rows(ranks).tobytes()
    assert list(struct.iter_unpack(">hiqiq", data)) == [
        (2, 8, 0, 8, 2),
        (2, 8, 1, 8, 0),
        (2, 8, 2, 8, 70_000),
    ]
    assert len(HEADER) == 19
    assert struct.unpack(">h", TRAILER) == (-1,)


def test_a_query_has_the_vector_of_its_number_and_a_moved_model_stays_near():
    old, new = NumberedTexts(64), NumberedTexts(64, moved=0.2)
    texts = [f"item {n}" for n in (0, 1, 1023, 1024, 999_999)]
    vectors = old.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors, old.encode([t.replace("item", "query") for t in texts]))
    np.testing.assert_array_equal(vectors, old.vectors(np.array([0, 1, 1023, 1024, 999_999])))
    across = new.encode(texts) @ vectors.T
    assert (across.argmax(axis=1) == np.arange(len(texts))).all()
    assert not np.allclose(new.encode(texts), vectors)
    assert (np.diag(across) > 0.95).all()


def test_numbers_up_to_a_million_have_vectors_of_their_own():
    vectors = NumberedTexts(8).vectors(np.arange(1_000_000))
    assert len(np.unique(vectors[:, :3].copy().view("V12"))) == 1_000_000


def test_the_timed_encoder_passes_everything_on_and_adds_up():
    stub = PacedStub(rate_per_s=1_000_000, dim=16)
    timed = Timed(stub)
    vectors = timed.encode(["a", "b", "c"])
    assert vectors.shape == (3, 16)
    assert vectors.dtype == np.float32
    first = timed.busy_s
    timed.encode([timed.preprocess("d")])
    assert 0 < first < timed.busy_s


def test_writing_extents_leaves_nothing_in_the_data_folder(tmp_path):
    rows = write_extent.run(Settings(data_dir=tmp_path / "data"), repeats=2, quick=True, n=4, dim=8)
    assert [row.row for row in rows] == [4]
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("n", [1_000, 200_000])
def test_the_order_is_checked_by_the_run_that_times_it(n, monkeypatch):
    assert order_scores._is_exact(np.random.default_rng(0).random(n, dtype=np.float32), n // 100)
    monkeypatch.setattr(order_scores, "order_rows", lambda scores: np.argsort(scores).astype(np.uint32))
    assert not order_scores._is_exact(np.random.default_rng(0).random(n, dtype=np.float32), n // 100)
