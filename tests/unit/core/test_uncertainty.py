"""The fused statistics equal a plain float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.core import uncertainty as module
from orchestrator.core.uncertainty import uncertainty


def naive(embeddings, prototypes, temperature):
    logits = embeddings.astype(np.float64) @ prototypes.astype(np.float64).T / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    ordered = np.sort(p, axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(axis=1) / np.log(p.shape[1])
    return 1 - ordered[:, 0], 1 - (ordered[:, 0] - ordered[:, 1]), entropy


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize(("n", "C"), [(1, 2), (700, 30), (1100, 5), (513, 2000)])
def test_all_three_statistics_equal_a_float64_softmax(unit, n, C, temperature):
    embeddings, prototypes = unit(n, 24), unit(C, 24)
    found = uncertainty(embeddings, prototypes, temperature)
    least, margin, entropy = naive(embeddings, prototypes, temperature)
    # A float32 logit of s / T is off by about 1e-7 / T.
    np.testing.assert_allclose(found.least_confidence, least, atol=3e-7 / temperature)
    np.testing.assert_allclose(found.margin, margin, atol=3e-7 / temperature)
    np.testing.assert_allclose(found.entropy, entropy, atol=3e-7 / temperature)
    assert found.entropy.dtype == np.float32


def test_chunks_do_not_change_the_statistics(unit, monkeypatch):
    embeddings, prototypes = unit(900, 16), unit(40, 16)
    whole = uncertainty(embeddings, prototypes)
    monkeypatch.setattr(module, "_CHUNK_ROWS", 37)
    pieces = uncertainty(embeddings, prototypes)
    np.testing.assert_allclose(pieces.entropy, whole.entropy, atol=1e-6)
    np.testing.assert_allclose(pieces.margin, whole.margin, atol=1e-6)


def test_a_sure_item_keeps_its_precision_where_a_subtraction_would_give_zero():
    prototypes = np.eye(3, dtype=np.float32)
    found = uncertainty(prototypes[:1], prototypes, 0.05)
    assert found.least_confidence[0] == pytest.approx(2 * np.exp(-20), rel=1e-4)
    assert found.margin[0] == pytest.approx(3 * np.exp(-20), rel=1e-4)


def test_two_equal_prototypes_leave_no_margin_and_all_equal_ones_full_entropy():
    embeddings = np.array([[1, 0]], np.float32)
    two = uncertainty(embeddings, np.array([[1, 0], [1, 0], [-1, 0]], np.float32))
    assert two.margin[0] == pytest.approx(1)
    assert two.least_confidence[0] == pytest.approx(0.5)
    assert uncertainty(embeddings, np.repeat(embeddings, 8, axis=0)).entropy[0] == pytest.approx(1)


def test_scratch_stays_within_its_limit_when_prototypes_are_many(monkeypatch):
    sizes = []
    real = torch.empty

    def recording(*shape, **options):
        sizes.append(4 * int(np.prod(shape)))
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", recording)
    uncertainty(np.ones((1000, 1), np.float32), np.ones((30_000, 1), np.float32))
    assert max(sizes) > 2**20
    assert sum(sizes) <= 32 * 2**20


@pytest.mark.parametrize(
    ("prototypes", "temperature", "message"),
    [
        (np.ones((1, 3), np.float32), 0.05, "two prototypes"),
        (np.ones((4, 2), np.float32), 0.05, "must be"),
        (np.ones((4, 3), np.float32), 0.0, "above 0"),
        (np.ones((4, 3), np.float32), float("nan"), "above 0"),
    ],
)
def test_inputs_that_allow_no_softmax_are_refused(prototypes, temperature, message):
    with pytest.raises(ValueError, match=message):
        uncertainty(np.ones((2, 3), np.float32), prototypes, temperature)


@pytest.mark.parametrize(("n", "C"), [(3, 2), (1100, 40), (1500, 9000)])
def test_chosen_rows_have_the_very_bits_that_they_have_among_all(unit, rng, n, C):
    embeddings, prototypes = unit(n, 32), unit(C, 32)
    whole = uncertainty(embeddings, prototypes)
    for m in (0, 1, 2, min(n, 700)):
        rows = rng.permutation(n)[:m]
        some = uncertainty(embeddings, prototypes, rows=rows)
        for name in ("least_confidence", "margin", "entropy"):
            np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[rows])


@pytest.mark.parametrize("squares", [False, True])
def test_what_is_compiled_has_the_moments_of_what_is_computed_in_place(rng, squares):
    logits = torch.from_numpy(rng.normal(size=(50, 300)).astype(np.float32) * 9)
    logits[0] = 1.0  # the largest is there many times: one of them is taken out
    apart = module.moments_apart(logits.clone(), torch.empty(0), squares=squares)
    traced = torch.compile(module.moments_apart, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(logits.clone(), torch.empty(0), squares=squares), apart)
    in_place = module.moments(logits, torch.empty_like(logits), squares=squares)
    assert in_place.shape == (3 + squares, 50)
    torch.testing.assert_close(apart, in_place, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "C", "d"), [(162, 5, 33), (701, 5, 33), (40, 3, 5)])
def test_equal_rows_at_places_where_the_library_adds_up_otherwise_keep_their_bits(unit, rng, n, C, d):
    embeddings, prototypes = np.repeat(unit(1, d), n, axis=0), unit(C, d)
    whole = uncertainty(embeddings, prototypes, 0.004)
    rows = rng.integers(0, n, 3 * n)
    some = uncertainty(embeddings, prototypes, 0.004, rows=rows)
    for name in ("least_confidence", "margin", "entropy"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[rows])


@pytest.mark.parametrize("C", [2, 255, 256, 257, 300, 640, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_entry_of_a_line_is_found_with_its_place(C, ties):
    generator = torch.Generator().manual_seed(C)
    logits = (
        torch.randint(-3, 3, (200, C), generator=generator).float()
        if ties
        else torch.randn(200, C, generator=generator)
    )
    logits[0], logits[1, -1], logits[2, 0] = 1.0, 9.0, 9.0
    largest, where = module._largest(logits)
    assert torch.equal(largest[:, 0], logits.amax(dim=1))
    assert torch.equal(logits.gather(1, where), largest)
    assert (where.shape, where.dtype) == ((200, 1), torch.int64)
    assert (int(where[1]), int(where[2])) == (C - 1, 0)


@pytest.mark.parametrize("onednn", [True, False])
def test_the_product_is_that_of_float64_with_onednn_and_without(unit, monkeypatch, onednn):
    if onednn and not module.onednn_product_exists():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "onednn_product_exists", lambda: onednn)
    embeddings, weights = torch.from_numpy(unit(37, 24)), torch.from_numpy(unit(50, 24))
    found = module.product_with(weights, 37, torch.device("cpu"))(embeddings)
    np.testing.assert_allclose(found, embeddings.double() @ weights.double().T, atol=5e-7)
