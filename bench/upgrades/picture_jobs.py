"""Upgrades of image encoders: the old model, the new ones, and what leads between their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.upgrades import arms, build
from bench.upgrades.arms import ARMS, Arm
from bench.upgrades.data import PICTURES, pictures
from bench.upgrades.job import Job
from bench.upgrades.measure import Vectors, measure_arm
from models import adapters, recipes
from models.datasets.splits import SPLITS
from models.training import TrainingOptions, load_prototypes

OLD = "old"
arms_of = arms.arms_of
_OTHER_NETWORK = {"widths": [16, 48, 128], "blocks": 1, "hidden": 256}


def jobs_of(root: Path, data: str, split: str, seeds: Sequence[int], chosen: Sequence[str]) -> list[Job]:
    """All jobs behind the chosen arms, what others need first."""
    parts = [OLD]
    parts += [f"encoder-{name}" for name in dict.fromkeys(ARMS[arm].trained for arm in chosen)]
    parts += [f"arm-{name}" for name in chosen]
    return [Job(root, data, split, seed, part) for seed in seeds for part in parts]


def needs(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    if job.kind == "encoder":
        return [job.beside(OLD)]
    return [job.beside(f"encoder-{ARMS[job.name].trained}")] if job.kind == "arm" else []


def do(job: Job) -> dict[str, Any]:
    """Train or measure; what the result holds."""
    return {OLD: _train_old, "encoder": _train_new, "arm": _measure}[job.kind](job)


def options_of(
    job: Job, *, new: bool, method: str = "independent", weight: float | None = None
) -> TrainingOptions:
    """How the old or the new model of a split is trained: the demo's recipe, changed by what the split names.

    `weight`: of the compatibility term; None: the method's own.
    """
    source, split = PICTURES[job.data], SPLITS[job.split]
    recipe = recipes.FULL.new if new else recipes.FULL.old
    options = replace(
        recipe,
        dim=round(recipe.dim * (split.new_dim if new else split.old_dim)),
        preprocessing=source.preprocessing,
        augmentation=source.augmentation,
        batch_size=source.batch_size,
        epochs=source.new_epochs if new else source.old_epochs,
        method_options={
            **arms.METHOD_OPTIONS.get(method, recipes.METHOD_OPTIONS.get(method, {})),
            **({} if weight is None else {"weight": weight}),
        },
    )
    if new and split.new_network:
        return replace(options, network=_OTHER_NETWORK)
    return options


def _train_old(job: Job) -> dict[str, Any]:
    data = pictures(job.data)
    rows, _ = SPLITS[job.split].rows(data.train.labels, job.seed)
    return build.train(job.folder, data, rows, options_of(job, new=False), seed=job.seed)


def _train_new(job: Job) -> dict[str, Any]:
    arm = next(arm for arm in ARMS.values() if arm.trained == job.name)
    data = pictures(job.data)
    _, rows = SPLITS[job.split].rows(data.train.labels, job.seed)
    return build.train(
        job.folder,
        data,
        rows,
        options_of(job, new=True, method=arm.encoder, weight=arm.weight),
        seed=job.seed + 1000,  # a new generation does not start from the old one's weights
        method=arm.encoder,
        old=job.beside(OLD).folder,
    )


def _measure(job: Job) -> dict[str, Any]:
    arm = ARMS[job.name]
    old, new = job.beside(OLD).folder, job.beside(f"encoder-{arm.trained}").folder
    data = pictures(job.data)
    vectors = Vectors(
        old_queries=build.load(old, "queries"),
        old_gallery=build.load(old, "gallery"),
        new_queries=build.load(new, "queries"),
        new_gallery=build.load(new, "gallery"),
        prototypes=load_prototypes(new)[0],
        labels=data.gallery.numbers,
    )
    adapter = _adapter(job, arm, old, new)
    return measure_arm(vectors, data.relevance, adapter, backward=arm.backward, seed=job.seed)


def _adapter(job: Job, arm: Arm, old: Path, new: Path) -> adapters.Adapter | None:
    if arm.adapter is None:
        return None
    if arm.pairs is arms.Pairs.JOINT:
        return adapters.load_adapter(new / build.ADAPTER)
    data = pictures(job.data)
    _, rows = SPLITS[job.split].rows(data.train.labels, job.seed)
    return build.fit(
        arm.adapter,
        job.folder,
        old,
        new,
        data.train.take(rows),
        rows,
        pairs=arm.pairs,
        seed=job.seed,
        backward=arm.backward,
    )
