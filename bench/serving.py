"""Rows 10, 11, 12 and 14: searches while a gallery is refreshed, rows replaced, batches searched, a model deployed."""

from __future__ import annotations

import math
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
    """Row 12: products and sums a second of a whole search, top-k included, of the fastest plain matrix product's."""
    n = 16_384 if quick else 131_072
    cases = [(DIM, 256, 10, True), (DIM, 1024, 10, True), (DIM, 256, 100, False), (64, 256, 10, False)]
    return [_batch_search(n, *case, repeats) for case in cases]


def _batch_search(n: int, dim: int, q: int, k: int, aimed: bool, repeats: int) -> Row:
    gallery, queries = random_unit(n, dim), random_unit(q, dim, SEED + 1)
    index = FaissFlat(gallery)
    works: dict[str, Callable[[], Any]] = {"search": lambda: index.search(queries, k)}
    flops = {"search": 2.0 * n * q * dim}
    for shape in SHAPES:
        for name, product in _products(shape).items():
            works[name], flops[name] = product, 2.0 * math.prod(shape)
    in_turns(works, 1)
    taken = in_turns(works, repeats)
    speed = {name: flops[name] / median(values) / 1e9 for name, values in taken.items()}
    ours = speed.pop("search")
    best = max(speed, key=lambda name: speed[name])
    share = ours / speed[best]
    return Row(
        12,
        f"batch search, N = {n:,}, d = {dim}, nq = {q:,}, k = {k}, seed {SEED}: median of {repeats}, "
        f"{quartiles([flops['search'] / each / 1e9 for each in taken['search']], form='.1f')}",
        ours,
        "GFLOP/s",
        f"SGEMM peak {speed[best]:.1f} ({best})",
        share,
        ">= 0.9" if aimed else "-",
        share >= 0.9 if aimed else None,
    )


def _products(shape: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    m, n, d = shape
    left, right = random_unit(m, d), random_unit(n, d, SEED + 1)
    out = np.empty((m, n), np.float32)
    a, b, c = (torch.from_numpy(each) for each in (left, right, out))
    size = f"{m} × {n} × {d}"
    return {
        f"numpy {size}": lambda: np.matmul(left, right.T, out=out),
        f"torch {size}": lambda: torch.mm(a, b.T, out=c),
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
