"""Rows 10, 11, 12 and 14: searches while a gallery is refreshed, rows replaced, batches searched, a model deployed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from bench import core, deploy, serving_peers, serving_refresh
from bench.result import Row, in_turns, median, quartiles
from bench.stubs import unit
from orchestrator.index.faiss_flat import FaissFlat
from orchestrator.settings import Settings

F32 = npt.NDArray[np.float32]
Product = tuple[float, Callable[[], Any]]
"""A matrix product: its products and sums, and the work."""
SEED = 0
DIM, BATCH = 256, 1024
SHAPES = ((256, 1024, 256), (256, 4096, 256), (1024, 4096, 1024), (2048, 2048, 2048))
"""Products (m, n, d) whose fastest, by either library, is the peak."""


def run(
    settings: Settings | None = None,
    *,
    repeats: int = 5,
    quick: bool = False,
    only: Collection[str] | None = None,
    say: core.Say | None = None,
    folder: Path = core.FOLDER,
) -> dict[str, Any]:
    """Measure, write <folder>/serving.json, and return the same document; the arguments are those of `core.run`.

    Args:
        only: numbers of rows; None: all.
    """
    rows = None if only is None else {int(number) for number in only}
    return core.measure(
        "serving", PARTS, settings, repeats=repeats, rows=rows, quick=quick, say=say, folder=folder
    )


def random_unit(n: int, dim: int, seed: int = SEED) -> F32:
    """(n, dim) random vectors of length 1."""
    return unit(np.random.default_rng(seed).standard_normal((n, dim), np.float32))


def replacing(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Row 11: rows at random places, none of them in the cache, beside a copy of as many bytes between two buffers."""
    n, samples = (100_000, 20) if quick else (1_000_000, 40)
    index = FaissFlat(np.ones((n, DIM), np.float32))
    order = np.random.default_rng(SEED).permutation(n)
    blocks = np.random.default_rng(SEED).standard_normal((20, BATCH, DIM), np.float32)
    target = np.zeros_like(blocks)
    small = faiss.IndexFlatIP(DIM)
    small.add(np.ones((100_000, DIM), np.float32))
    turn, rows = 0, order[:0]

    def before(name: str) -> None:
        nonlocal turn, rows
        turn += 1
        at = turn * BATCH % (n - BATCH)
        rows = order[at : at + BATCH]

    def remove_and_add() -> None:
        small.remove_ids(faiss.IDSelectorBatch(np.arange(BATCH) * 90))
        small.add(blocks[0])

    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: np.copyto(target[turn % 20], blocks[(turn + 7) % 20]),
        "replace": lambda: index.replace(rows, blocks[turn % 20]),
    }
    taken = in_turns(works, repeats * samples, before)
    taken |= in_turns({"remove": remove_and_add}, repeats)
    copy, ours, removed = (median(taken[name]) for name in ("copy", "replace", "remove"))
    return [
        Row(11, f"replace {BATCH:,} random rows of {n:,} × {DIM} float32, seed {SEED}: p50 of {len(taken['replace'])}, "
            f"{quartiles(taken['replace'], 1e6, '.0f')}", ours * 1e6, "µs",
            f"memcpy of the rows {copy * 1e6:.0f} µs, {quartiles(taken['copy'], 1e6, '.0f')}", ours / copy, "<= 4",
            ours / copy <= 4),
        Row(11, f"peer: remove and add in FAISS, {BATCH:,} rows of 100,000 × {DIM}: median of {repeats}", removed * 1e6, "µs",
            "memcpy of the rows", removed / copy),
    ]  # fmt: skip


def batch_search(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Row 12: products and sums a second of a whole search, top-k included, of the fastest plain matrix product's.

    By processor time of this one thread: a search is long enough to be interrupted by others, a product is not.
    """
    n = 16_384 if quick else 131_072
    products = {name: product for shape in SHAPES for name, product in _products(shape).items()}
    cases = [(DIM, 256, 10, True), (DIM, 1024, 10, True), (DIM, 256, 100, False), (64, 256, 10, False)]
    return [_batch_search(n, *case, products, repeats) for case in cases]


def _batch_search(
    n: int, dim: int, q: int, k: int, aimed: bool, products: dict[str, Product], repeats: int
) -> Row:
    gallery, queries = random_unit(n, dim), random_unit(q, dim, SEED + 1)
    index = FaissFlat(gallery)
    index.search(queries, k)
    found: list[float] = []
    peaks: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(repeats):
        found.append(2.0 * n * q * dim / _processor_s(lambda: index.search(queries, k)) / 1e9)
        for name, (flops, product) in products.items():
            times = max(1, round(2e9 / flops))
            taken = _processor_s(lambda: [product() for _ in range(times)])  # noqa: B023 - called at once
            peaks[name].append(times * flops / taken / 1e9)
    best = max(peaks, key=lambda name: median(peaks[name]))
    share = median(found) / median(peaks[best])
    return Row(
        12,
        f"batch search, N = {n:,}, d = {dim}, nq = {q:,}, k = {k}, seed {SEED}: median of {repeats}, "
        f"{quartiles(found, form='.1f')}, by processor time",
        median(found),
        "GFLOP/s",
        f"SGEMM peak {median(peaks[best]):.1f}, {quartiles(peaks[best], form='.1f')} ({best})",
        share,
        ">= 0.9" if aimed else "-",
        share >= 0.9 if aimed else None,
    )


def _processor_s(work: Callable[[], Any]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _products(shape: tuple[int, int, int]) -> dict[str, Product]:
    m, n, d = shape
    left, right = random_unit(m, d), random_unit(n, d, SEED + 1)
    out = np.empty((m, n), np.float32)
    a, b, c = (torch.from_numpy(each) for each in (left, right, out))
    size, flops = f"{m} × {n} × {d}", 2.0 * m * n * d
    return {
        f"numpy {size}": (flops, lambda: np.matmul(left, right.T, out=out)),
        f"torch {size}": (flops, lambda: torch.mm(a, b.T, out=c)),
    }


def refreshing(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Row 10, ours and the peers."""
    return [
        *serving_refresh.measure(settings, repeats=repeats, quick=quick),
        *serving_peers.measure(settings, repeats=repeats, quick=quick),
    ]


PARTS: dict[int, core.Part] = {
    10: ("searching during a refresh, and peers", refreshing),
    11: ("replacing rows", replacing),
    12: ("searching in batches", batch_search),
    14: ("deploying a new model", deploy.run),
}
"""What measures each row, in the order of running."""
