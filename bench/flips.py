"""Row 9: the flips of every query after every batch of a refresh, beside one full FAISS search of the gallery."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from bench.result import Row, document, in_turns, median, quartiles
from orchestrator.core.flips import FlipTracker
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import Relevance, top_k
from orchestrator.index.faiss_flat import FaissFlat

F32 = npt.NDArray[np.float32]
SEED = 0
DRIFTS = {"improving": 0.3, "neutral": 0.0, "falling": -0.3}
CHECKPOINTS = 3
TOLERANCE = 1e-5
"""Scores of two libraries differ by rounding: answers may differ only where scores are that close."""


@dataclass(frozen=True)
class Size:
    """N items, Q queries, d dimensions, batches of B, buffers of K'."""

    N: int
    Q: int
    d: int
    B: int
    buffer: int


FULL = Size(1_000_000, 10_000, 64, 1024, 100)
QUICK = Size(20_000, 500, 32, 1024, 40)


@dataclass(frozen=True)
class Refresh:
    """A gallery before and after, in the order of its refresh, and who asks for what."""

    queries: F32
    old: F32
    new: F32
    order: npt.NDArray[np.int64]
    relevance: Relevance


def run(*, repeats: int = 5, quick: bool = False, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Time both on one thread, in turns; a few stages are compared with a full search.

    Args:
        quick: small sizes and two repeats: to see that it works, not to quote.
        say: told what is measured next.
    """
    tell = say or (lambda text: None)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    size, repeats = (QUICK, min(repeats, 2)) if quick else (FULL, repeats)
    rows = []
    for name, drift in DRIFTS.items():
        for k in (1, 10) if name == "neutral" else (1,):
            tell(f"row 9: {name} scores, k = {k}")
            rows.append(_measure(refresh_of(size, drift), size, name, k, repeats, quick=quick))
    return document("flips", rows, repeats=repeats, quick=quick, seed=SEED, faiss_threads=1)


def refresh_of(size: Size, drift: float) -> Refresh:
    """Random unit vectors; every item answers one query, and its new vector moves towards it by `drift`, or away."""
    rng = np.random.default_rng(SEED)
    queries = _unit(rng.standard_normal((size.Q, size.d), np.float32))
    owner = rng.integers(0, size.Q, size.N)
    old = _unit(rng.standard_normal((size.N, size.d), np.float32))
    old = _unit(old + 0.8 * queries[owner])
    new = _unit(old + drift * queries[owner] + 0.05 * rng.standard_normal((size.N, size.d), np.float32))
    relevance = Relevance.from_pairs(size.Q, owner, np.arange(size.N))
    return Refresh(queries, old, new, rng.permutation(size.N), relevance)


def follow(
    answers: IncrementalTopK,
    refresh: Refresh,
    size: Size,
    seen: Callable[[int, IncrementalTopK], None] | None = None,
) -> FlipTracker:
    """Every stage of the refresh, from the answers before it; `seen(number of the batch, answers)` after each."""
    tracker = FlipTracker(refresh.relevance, *answers.top())
    settled = np.zeros(size.N, np.bool_)
    for number, at in enumerate(range(0, size.N, size.B)):
        rows = refresh.order[at : at + size.B]
        changed = answers.apply(rows, refresh.new[rows])
        settled[rows] = True
        scores, found = answers.top()
        tracker.update(changed, scores[changed], found[changed], settled)
        if seen is not None:
            seen(number, answers)
    return tracker


def _measure(refresh: Refresh, size: Size, name: str, k: int, repeats: int, *, quick: bool) -> Row:
    first = IncrementalTopK(refresh.queries, refresh.old.copy(), k, size.buffer)  # a full search, not timed
    exact = is_exact(copy.deepcopy(first), refresh, size, k)
    index = FaissFlat(refresh.old)
    prepared = {"answers": first}

    def prepare(work: str) -> None:
        if work == "incremental":
            prepared["answers"] = copy.deepcopy(first)

    taken = in_turns(
        {
            "incremental": lambda: follow(prepared["answers"], refresh, size),
            "full": lambda: index.search(refresh.queries, k),
        },
        repeats,
        before=prepare,
    )
    ours, full = median(taken["incremental"]), median(taken["full"])
    again = prepared["answers"].searched_again
    batches = -(-size.N // size.B)
    return Row(
        9,
        f"flips after each of {batches:,} batches, {name} scores, {'exact' if exact else 'NOT EXACT'}, {again:,} queries "
        f"searched again, N = {size.N:,}, Q = {size.Q:,}, d = {size.d}, B = {size.B:,}, k = {k}, K' = {size.buffer}, "
        f"seed {SEED}: median of {repeats}, {quartiles(taken['incremental'])} s, {batches * full / ours:,.0f} x a search a batch",
        ours,
        "s",
        f"one full search, FAISS flat by BLAS, {full:.2f} s",
        ours / full,
        "<= 1.5",
        None if quick else exact and ours <= 1.5 * full,
    )


def is_exact(answers: IncrementalTopK, refresh: Refresh, size: Size, k: int) -> bool:
    """Whether the answers at a few random stages are those of a full search of the mixture."""
    batches = -(-size.N // size.B)
    chosen = set(
        np.random.default_rng(SEED).choice(batches, min(CHECKPOINTS, batches), replace=False).tolist()
    )
    same = []

    def compare(number: int, answers: IncrementalTopK) -> None:
        if number in chosen:
            done = refresh.order[: (number + 1) * size.B]
            mixture = refresh.old.copy()
            mixture[done] = refresh.new[done]
            scores, rows = top_k(refresh.queries, mixture, k)
            ours, found = answers.top()
            close = np.abs(ours - scores).max() <= TOLERANCE
            same.append(bool(close and (rows == found).mean() > 0.999))

    follow(answers, refresh, size, compare)
    return all(same) and len(same) == len(chosen)


def _unit(vectors: F32) -> F32:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
