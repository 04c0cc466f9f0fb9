"""Sequential upgrades v1 → v2 → v3: each model trained against the one before, the gallery never re-embedded by v2 or v3.

v1 is trained on 30 % of the training classes, v2 on 60 %, v3 on all. Measured for the queries of v3: the gallery as v1
embedded it, as v2 would have, a gallery of all three generations (a third of the items each, drawn by the seed), and
the one that v3 makes. Where there is an adapter, v1's vectors reach v3 through two of them and v2's through one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.upgrades import arms, build
from bench.upgrades.arms import Pairs
from bench.upgrades.data import PICTURES, PictureSet, pictures
from bench.upgrades.job import Job
from models import adapters, recipes
from models.training import TrainingOptions
from orchestrator.core.metrics import Relevance, evaluate

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SPLIT = "v1-v2-v3"
_SHARES = {"v1": 0.3, "v2": 0.6, "v3": 1.0}


@dataclass(frozen=True)
class Chain:
    """How every step of a chain is made: the method of v2 and v3, and the adapter between neighbours."""

    name: str
    method: str
    adapter: str | None = None
    pairs: Pairs = Pairs.NONE


ARMS: dict[str, Chain] = {
    chain.name: chain
    for chain in (
        Chain("independent", "independent"),
        Chain("bct", "bct"),
        Chain("ract", "ract"),
        Chain("unibct", "unibct"),
        Chain("bict", "bict", "bict", Pairs.PLAIN),
        Chain("dmu", "dmu", "mlp", Pairs.JOINT),
        Chain("ract + mlp", "ract", "mlp", Pairs.COMPOSITES),
    )
}


def arms_of(data: str, split: str) -> list[str]:
    """The names of the arms that are measured there."""
    return list(ARMS)


def jobs_of(root: Path, data: str, split: str, seeds: Sequence[int], chosen: Sequence[str]) -> list[Job]:
    """All jobs behind the chosen chains."""
    methods = dict.fromkeys(ARMS[name].method for name in chosen)
    parts = ["v1", *(f"{version}-{method}" for version in ("v2", "v3") for method in methods)]
    parts += [f"chain-{name}" for name in chosen]
    return [Job(root, data, split, seed, part) for seed in seeds for part in parts]


def needs(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    if job.kind == "v2":
        return [job.beside("v1")]
    if job.kind == "v3":
        return [job.beside(f"v2-{job.name}")]
    return [job.beside(f"v3-{ARMS[job.name].method}")] if job.kind == "chain" else []


def do(job: Job) -> dict[str, Any]:
    """Train a generation or measure a chain; what the result holds."""
    if job.kind == "chain":
        return _measure(job)
    old = needs(job)
    return build.train(
        job.folder,
        pictures(job.data),
        _rows(job.data, job.kind, job.seed),
        _options(job),
        seed=job.seed + 1000 * list(_SHARES).index(job.kind),
        method=job.name or "independent",
        old=old[0].folder if old else None,
    )


def _options(job: Job) -> TrainingOptions:
    source = PICTURES[job.data]
    first = job.kind == "v1"
    return replace(
        recipes.FULL.old if first else recipes.FULL.new,
        preprocessing=source.preprocessing,
        augmentation=source.augmentation,
        batch_size=source.batch_size,
        epochs=source.old_epochs if first else source.new_epochs,
        method_options=arms.METHOD_OPTIONS.get(job.name, recipes.METHOD_OPTIONS.get(job.name, {})),
    )


def _rows(data: str, version: str, seed: int) -> I64:
    """The training pictures of a generation: each generation's classes hold those of the one before."""
    classes, members = np.unique(np.asarray(pictures(data).train.labels), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    return np.flatnonzero(np.isin(members, order[: round(_SHARES[version] * len(classes))]))


def _measure(job: Job) -> dict[str, Any]:
    chain, data = ARMS[job.name], pictures(job.data)
    folders = [job.beside(part).folder for part in ("v1", f"v2-{chain.method}", f"v3-{chain.method}")]
    stored = [build.load(folder, "gallery") for folder in folders]
    queries = [build.load(folder, "queries") for folder in folders]
    relevance = data.relevance
    found = {f"v{n}_v{n}": _recall(queries[n - 1], stored[n - 1], relevance) for n in (1, 2, 3)}
    steps = [_adapter(job, chain, folders, data, step) for step in (0, 1)]
    first_in_second = _lifted(steps[0], stored[0])
    first, second = _lifted(steps[1], first_in_second), _lifted(steps[1], stored[1])
    which = np.random.default_rng(job.seed).integers(3, size=len(first))
    mixed = np.choose(which[:, None], [first, second, stored[2]])
    return {
        **found,
        "v2_v1": _recall(queries[1], first_in_second, relevance),
        "v3_v1": _recall(queries[2], first, relevance),
        "v3_v2": _recall(queries[2], second, relevance),
        "v3_mixed": _recall(queries[2], mixed, relevance),
    }


def _adapter(
    job: Job, chain: Chain, folders: Sequence[Path], data: PictureSet, step: int
) -> adapters.Adapter | None:
    """The adapter from the generation of place `step` to the next."""
    old, new = folders[step], folders[step + 1]
    if chain.adapter is None:
        return None
    if chain.pairs is Pairs.JOINT:
        return adapters.load_adapter(new / build.ADAPTER)
    rows = _rows(job.data, f"v{step + 2}", job.seed)
    return build.fit(
        chain.adapter,
        job.folder / f"step-{step + 1}",
        old,
        new,
        data.train.take(rows),
        rows,
        pairs=chain.pairs,
        seed=job.seed,
    )


def _lifted(adapter: adapters.Adapter | None, vectors: F32) -> F32:
    return vectors if adapter is None else adapter.transform(vectors)[0]


def _recall(queries: F32, gallery: F32, relevance: Relevance) -> float:
    recall = evaluate(queries, gallery, relevance).recall
    assert recall is not None
    return recall
