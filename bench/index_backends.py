"""Index backends side by side: load, replace, search, recall before and after a refresh, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import psutil
import psycopg
import torch

from bench.result import Row, document, median, quartiles, seconds
from bench.scratch import scratch_context, scratch_folder
from orchestrator.core.metrics import top_k
from orchestrator.errors import UsageError
from orchestrator.index import BACKENDS, CODED, IndexOptions, VectorIndex, make_index
from orchestrator.settings import Settings

Vectors = npt.NDArray[np.float32]
DIM, CLUSTERS, K, SLICE, BATCH = 64, 200, 10, 1024, 256
SIZES = (20_000, 200_000)
# Replacing 200,000 rows of a graph takes minutes: it is measured at the smaller size only.
SLOW_WRITES = {"pgvector-hnsw": 20_000}
# How much the new model's centres differ from the old one's: both are compatible, so queries of the new one find old rows.
SHIFT = 0.5


@dataclass(frozen=True)
class Case:
    """One size: unit vectors around the same classes, by the old model and by the new one, and the new one's queries."""

    n: int
    old: Vectors
    new: Vectors
    queries: Vectors
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]


def make_case(n: int, seed: int) -> Case:
    """Labels, centres and noise by `seed`; the noise of an item is as large as its centre."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLUSTERS, DIM))
    moved = centres + SHIFT * random.normal(size=(CLUSTERS, DIM))
    labels = random.integers(CLUSTERS, size=n)

    def around(some: Any, of: Any) -> Vectors:
        vectors = (some[of] + random.normal(size=(len(of), DIM))).astype(np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    old, new = around(centres, labels), around(moved, labels)
    queries = around(moved, random.integers(CLUSTERS, size=BATCH))
    return Case(n, old, new, queries, top_k(queries, old, K)[1], top_k(queries, new, K)[1])


def run(
    settings: Settings | None = None,
    repeats: int = 3,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    only: Sequence[str] | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Measure every backend (or `only` these) at every size; one thread in this process.

    Raises:
        UsageError: no such backend.
    """
    backends = [name for name in BACKENDS if name not in CODED]  # those are measured by `bench codes`
    unknown = set(only or ()) - set(backends)
    if unknown:
        raise UsageError(f"there is no index backend {min(unknown)!r} here; there are {', '.join(backends)}.")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[Row] = []
    with scratch_context(settings) as context, scratch_folder(context.settings) as folder:
        url = context.engine.url.render_as_string(hide_password=False)
        for n in sizes:
            case = make_case(n, seed)
            for name in only or backends:
                say(f"{name} at {n:,}")
                options = IndexOptions(url=url if name.startswith("pgvector") else None, folder=folder)
                rows += _measure(name, case, options, repeats)
    return document("index_backends", rows, seed=seed, dim=DIM, k=K)


def _measure(name: str, case: Case, options: IndexOptions, repeats: int) -> Iterator[Row]:
    def row(number: int, what: str, value: float, unit: str, against: str = "-") -> Row:
        return Row(number, f"{name}, {case.n:,} × {DIM}: {what}", value, unit, against)

    with _opened(name, case.old[:1], options) as warm:  # imports and first connections are not the load
        warm.search(case.queries[:1], 1)
    gc.collect()
    resident = psutil.Process().memory_info().rss
    made: list[VectorIndex] = []
    load_s = seconds(lambda: made.append(make_index(name, case.old, options)))
    index = made.pop()
    try:
        index.search(case.queries[:1], K)
        grown = psutil.Process().memory_info().rss - resident
        yield row(12, "load", load_s, "s")
        yield row(
            12, "memory of this process", grown / 1e6, "MB", f"the vectors, {case.old.nbytes / 1e6:.0f} MB"
        )
        outside = _bytes_outside(name, options)
        if outside is not None:
            yield row(12, "table and indexes, or files", outside / 1e6, "MB")
        yield row(12, f"recall@{K} before", _recall(index, case.queries, case.before), "share")
        yield from _searches(row, index, case, repeats, "before")
        yield from _refresh(row, name, index, case, repeats)
    finally:
        index.close()


def _searches(
    row: Callable[..., Row], index: VectorIndex, case: Case, repeats: int, when: str
) -> Iterator[Row]:
    single = [seconds(lambda at=at: index.search(case.queries[at : at + 1], K)) for at in range(10 * repeats)]
    spread = quartiles(single, 1e3, ".3g")
    yield row(10, f"single search {when}, p50 of {len(single)}, {spread}", median(single) * 1e3, "ms")
    batches = [seconds(lambda: index.search(case.queries, K))]
    while len(batches) < repeats and sum(batches) < 3:
        batches.append(seconds(lambda: index.search(case.queries, K)))
    yield row(12, f"batch of {BATCH} {when}, median of {len(batches)}", median(batches) * 1e3, "ms")


def _refresh(
    row: Callable[..., Row], name: str, index: VectorIndex, case: Case, repeats: int
) -> Iterator[Row]:
    """Every row gets the new model's vector, in slices and an order by chance; then lists are made anew where there are any."""
    if case.n > SLOW_WRITES.get(name, case.n):
        order = np.random.default_rng(1).permutation(case.n)[: repeats * SLICE]
    else:
        order = np.random.default_rng(1).permutation(case.n)
    taken = []
    for at in range(0, len(order), SLICE):
        rows = order[at : at + SLICE]
        taken.append(seconds(lambda rows=rows: index.replace(rows, case.new[rows])))
    spread = quartiles(taken, 1e3, ".3g")
    yield row(11, f"replace {SLICE:,} rows, median of {len(taken)}, {spread}", median(taken) * 1e3, "ms")
    if len(order) < case.n:
        return
    yield row(11, "replace all rows", sum(taken), "s")
    yield row(
        10, f"recall@{K} after all rows were replaced", _recall(index, case.queries, case.after), "share"
    )
    yield from _searches(row, index, case, repeats, "after")
    if hasattr(index, "rebuilt"):
        made: list[Any] = []
        yield row(11, "lists made anew", seconds(lambda: made.append(index.rebuilt(index.vectors()))), "s")
        yield row(10, f"recall@{K} with new lists", _recall(made[0], case.queries, case.after), "share")
        yield from _searches(row, made[0], case, repeats, "with new lists")


def _recall(index: VectorIndex, queries: Vectors, exact: npt.NDArray[np.int64]) -> float:
    """Share of the K nearest that are answered."""
    found = index.search(queries, K)[1]
    return float((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def _bytes_outside(name: str, options: IndexOptions) -> int | None:
    """What the backend holds on its server or its disk; the scratch database and folder hold nothing else of its kind."""
    if name.startswith("pgvector"):
        assert options.url is not None
        with psycopg.connect(options.url.replace("+psycopg", "")) as connection:
            found = connection.execute(
                "SELECT sum(pg_total_relation_size(c.oid))::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE nspname = 'hotrefresh_index' AND relkind = 'r'"
            ).fetchone()
        return int(found[0]) if found is not None and found[0] is not None else 0
    if name == "milvus":
        return sum(path.stat().st_size for path in Path(options.folder).rglob("*") if path.is_file())
    return None


@contextmanager
def _opened(name: str, vectors: Vectors, options: IndexOptions) -> Iterator[VectorIndex]:
    index = make_index(name, vectors, replace(options, shards=1))
    try:
        yield index
    finally:
        index.close()
