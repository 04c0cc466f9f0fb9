"""Upgrades of a vision transformer by its norm: the old one has layer norm, each new one a norm of `recipes.NORMS`.

The new models are trained compatibly with the old one (RACT), on the same pictures and from the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.upgrades import build
from bench.upgrades.arms import Pairs
from bench.upgrades.data import PICTURES, pictures
from bench.upgrades.job import Job, done_once
from bench.upgrades.measure import TEMPERATURE
from models import recipes
from models.datasets.splits import SPLITS
from models.encoders import load_encoder
from models.encoders.images import TorchImageEncoder, to_float
from models.training import TrainingOptions, load_prototypes
from orchestrator.core import plan
from orchestrator.core.metrics import Relevance, evaluate, top_k
from orchestrator.core.orders import ORDERS, Inputs
from orchestrator.core.simulate import refresh_curve

OLD, NEW = "old", "new"
METHOD = "ract"
BARE, LIFTED = "bare", "adapter"
"""Stored embeddings as they are, and lifted by the mlp adapter, as the demo's are."""
REFRESH_ORDERS = ("random", "entropy")
_SPLIT = "extended-class"
_TIMED, _REPEATS = 256, 5


@dataclass(frozen=True)
class Size:
    """How large the networks are and how long they are trained.

    Attributes:
        old_epochs, new_epochs: passes over the pictures, on glyphs; on emoji ten times as many, there are fewer.
    """

    name: str
    old_network: dict[str, int]
    new_network: dict[str, int]
    old_epochs: float
    new_epochs: float
    batch_size: int = 64
    learning_rate: float = 3e-3


_NETWORK = {"patch": 8, "width": 64, "depth": 2, "heads": 4}
SIZES = {
    size.name: size
    for size in (
        Size("full", _NETWORK, {**_NETWORK, "depth": 4}, old_epochs=16, new_epochs=10),
        Size("small", _NETWORK, _NETWORK, old_epochs=8, new_epochs=5),
        Size("tiny", {**_NETWORK, "width": 16}, {**_NETWORK, "width": 16}, old_epochs=0.1, new_epochs=0.05),
    )
}
"""By name; it stands for the split in a job. "tiny" only shows that it works."""


def jobs_of(root: Path, data: str, size: str, seeds: Sequence[int]) -> list[Job]:
    """The old model's job and one a norm, for every seed."""
    parts = [OLD, *(f"{NEW}-{norm}" for norm in recipes.NORMS)]
    return [Job(root, data, size, seed, part) for seed in seeds for part in parts]


def needs(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    return [] if job.part == OLD else [job.beside(OLD)]


def work(job: Job) -> float:
    """Do a job, unless it is done; returns the seconds that it took."""
    return done_once(job, do)


def do(job: Job) -> dict[str, Any]:
    """Train and, for a new model, measure; what the result holds. `train_seconds` are the training's own."""
    data, size, new = pictures(job.data), SIZES[job.split], job.kind == NEW
    rows = SPLITS[_SPLIT].rows(data.train.labels, job.seed)[int(new)]
    build.train(
        job.folder,
        data,
        rows,
        options_of(job.data, size, recipes.NORMS[job.name] if new else None),
        seed=job.seed + (1000 if new else 0),  # a new generation does not start from the old one's weights
        method=METHOD if new else "independent",
        old=job.beside(OLD).folder if new else None,
    )
    encoder = load_encoder(job.folder)
    assert isinstance(encoder, TorchImageEncoder)
    found = {
        "train_seconds": encoder.manifest.training["seconds"],
        "parameters": sum(each.numel() for each in encoder.network.parameters()),
        "embed_ms": _milliseconds(encoder, data.queries.pixels[:_TIMED]),
    }
    return {**found, **(_measure(job) if new else {})}


def options_of(data: str, size: Size, norm: Any = None) -> TrainingOptions:
    """Of the old model (`norm` None) or of a new one with these options of its norm."""
    source, recipe = PICTURES[data], recipes.FULL.old if norm is None else recipes.FULL.new
    longer = 10 if data == "emoji" else 1
    return replace(
        recipe,
        architecture="vit",
        network=size.old_network if norm is None else {**size.new_network, **norm},
        preprocessing=source.preprocessing,
        augmentation=source.augmentation,
        batch_size=size.batch_size,
        epochs=longer * (size.old_epochs if norm is None else size.new_epochs),
        learning_rate=size.learning_rate,
        method_options={} if norm is None else recipes.METHOD_OPTIONS[METHOD],
    )


def _measure(job: Job) -> dict[str, Any]:
    """Recall at 1 of both systems, and the refresh from the stored embeddings as they are, and through an adapter."""
    data, old, new = pictures(job.data), job.beside(OLD).folder, job.folder
    stored, old_queries = build.load(old, "gallery"), build.load(old, "queries")
    rows = SPLITS[_SPLIT].rows(data.train.labels, job.seed)[1]
    adapter = build.fit(
        "mlp", new, old, new, data.train.take(rows), rows, pairs=Pairs.COMPOSITES, seed=job.seed
    )
    relevance = data.relevance
    right = relevance.hits(top_k(old_queries, stored, 1)[1]) & relevance.answerable
    return {
        "old_old": evaluate(old_queries, stored, relevance).recall,
        "new_new": evaluate(build.load(new, "queries"), build.load(new, "gallery"), relevance).recall,
        BARE: _refresh(job, stored, relevance, right),
        LIFTED: _refresh(job, adapter.transform(stored)[0], relevance, right),
    }


def _refresh(job: Job, base: build.F32, relevance: Relevance, old_right: np.ndarray) -> dict[str, Any]:
    """M(new,old), then recall and flips of every state of a refresh from `base`, in each order."""
    queries, renewed = build.load(job.folder, "queries"), build.load(job.folder, "gallery")
    inputs = Inputs(
        n=len(base),
        embeddings=base,
        prototypes=load_prototypes(job.folder)[0],
        temperature=TEMPERATURE,
        rng=np.random.default_rng(job.seed),
    )
    found: dict[str, Any] = {"new_old": evaluate(queries, base, relevance).recall}
    for order in REFRESH_ORDERS:
        row_of = plan.order_rows(ORDERS[order].score(inputs))
        points = refresh_curve(queries, base, renewed, row_of, relevance, old_right)
        found[order] = {
            "recall": [point.r_at_1 for point in points],
            "nfr": [point.flips.nfr for point in points],
        }
    return found


def _milliseconds(encoder: TorchImageEncoder, pixels: np.ndarray) -> float:
    """The quickest of some passes over `_TIMED` pictures, one thread; P is cached by the first pass, not timed."""
    stack, taken = to_float(torch.from_numpy(pixels)), []
    with torch.inference_mode():
        encoder.embed(stack)
        for _ in range(_REPEATS):
            started = time.perf_counter()
            encoder.embed(stack)
            taken.append(time.perf_counter() - started)
    return round(1000 * min(taken), 2)
