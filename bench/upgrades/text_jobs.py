"""Upgrades between published text encoders that nobody trained together: only an adapter can lead between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.upgrades import build
from bench.upgrades.arms import Arm, Pairs
from bench.upgrades.data import relevance_of
from bench.upgrades.job import Job
from bench.upgrades.measure import Vectors, measure_arm
from models.datasets import Item
from models.encoders import architecture_module, load_encoder
from orchestrator.core.prototypes import kmeans_centroids

UPGRADES = {
    "wordllama-64-to-256": ("wordllama-64", "wordllama-256"),
    "wordllama-256-to-minilm": ("wordllama-256", "minilm"),
}
_FORWARD = ("procrustes", "low_rank", "fct", "lambda_orthogonal", "mlp")
_BACKWARD = ("procrustes", "low_rank", "residual_mlp")

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("independent", ""),
        *(Arm(f"independent + {name}", "", name, Pairs.PLAIN) for name in _FORWARD),
        *(Arm(f"query-side {name}", "", name, Pairs.PLAIN, backward=True) for name in _BACKWARD),
    )
}
"""Methods that need class labels or a classifier's rows have nothing to work with here."""

POOL = 4_000
PAIRS = 3_000
"""Verses of neither gallery nor queries that adapters may be fitted on, and how many of them a seed draws."""

_PROTOTYPES = 500
_SHARED = "embeddings"


def arms_of(data: str, split: str) -> list[str]:
    """The names of the arms that are measured there."""
    return list(ARMS)


def jobs_of(root: Path, data: str, split: str, seeds: Sequence[int], chosen: Sequence[str]) -> list[Job]:
    """All jobs behind the chosen arms; each encoder embeds once for all of them."""
    shared = [Job(root, data, _SHARED, 0, f"embed-{name}") for name in UPGRADES[split]]
    return shared + [Job(root, data, split, seed, f"arm-{arm}") for seed in seeds for arm in chosen]


def needs(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    if job.kind == "embed":
        return []
    return [Job(job.root, job.data, _SHARED, 0, f"embed-{name}") for name in UPGRADES[job.split]]


def do(job: Job) -> dict[str, Any]:
    """Embed or measure; what the result holds."""
    return _embed(job) if job.kind == "embed" else _measure(job)


def check() -> None:
    """Raises UsageError where the verses are not installed."""
    verses("gallery")


@lru_cache(maxsize=3)
def verses(part: str) -> tuple[Item, ...]:
    """gallery: every tenth verse of the World English Bible; queries: the same in the King James Version; pool: others.

    The pool is spread evenly over the verses that are in neither.
    """
    from models.datasets import list_items

    if part == "pool":
        everything = list_items("verses:web", "all").items
        others = [item for place, item in enumerate(everything) if place % 10]
        return tuple(others[int(place)] for place in np.linspace(0, len(others) - 1, POOL))
    return tuple(list_items({"gallery": "verses:web", "queries": "verses:kjv"}[part], "tenth").items)


def _embed(job: Job) -> dict[str, Any]:
    from models.datasets import read_item

    architecture, _, dims = job.name.partition("-")
    architecture_module(architecture).create(job.folder, job.name, *([int(dims)] if dims else []))
    encoder = load_encoder(job.folder)
    counts = {}
    for part in ("gallery", "queries", "pool"):
        texts = [encoder.preprocess(read_item(item.uri)) for item in verses(part)]
        np.save(job.folder / f"{part}.npy", encoder.encode(texts))
        counts[part] = len(texts)
    return counts


def _measure(job: Job) -> dict[str, Any]:
    arm = ARMS[job.name]
    old, new = (need.folder for need in needs(job))
    rng = np.random.default_rng(job.seed)
    drawn = np.sort(rng.choice(POOL, PAIRS, replace=False))
    pair = build.load(old, "pool")[drawn], build.load(new, "pool")[drawn]
    adapter = None
    if arm.adapter is not None:
        adapter = build.fit_pairs(
            arm.adapter, job.folder, old, new, pair, backward=arm.backward, modality="text", seed=job.seed
        )
    vectors = Vectors(
        old_queries=build.load(old, "queries"),
        old_gallery=build.load(old, "gallery"),
        new_queries=build.load(new, "queries"),
        new_gallery=build.load(new, "gallery"),
        prototypes=kmeans_centroids(pair[1], _PROTOTYPES, rng),
        labels=np.arange(len(verses("gallery"))),  # each verse is a class of its own
    )
    labels = [[str(item.label) for item in verses(part)] for part in ("queries", "gallery")]
    return measure_arm(vectors, relevance_of(*labels), adapter, backward=arm.backward, seed=job.seed)
