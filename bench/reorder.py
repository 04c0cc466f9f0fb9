"""What it gains to re-rank a refresh by its open flips: some queries drive it, others that it does not know measure.

Glyphs have one query a class, so two halves of the queries ask for different items (`other classes`): nothing that heals a flip
of one half is relevant to the other. In a second world each class is asked for twice (`same classes`): all queries drive, and the
pictures of one gallery item a class, taken out of the gallery, ask again and measure.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench import result
from bench.upgrades import build, picture_jobs
from bench.upgrades.arms import ARMS
from bench.upgrades.data import pictures
from bench.upgrades.job import Job, code_digest
from bench.upgrades.jobs import check_data, needs, work
from bench.upgrades.measure import TEMPERATURE
from models.adapters.leading import leading
from models.training import load_prototypes
from orchestrator.core import healing, plan
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import Relevance, top_k
from orchestrator.core.orders import order_scores
from orchestrator.core.simulate import normalised_area, trapezoid_area
from orchestrator.demo.jobs import run_jobs

F32 = npt.NDArray[np.float32]
Say = Callable[[str], None]

FOLDER = Path("bench-results/reorder")
TRAINED = Path(
    "bench-results/methods"
)  # encoders are those of `bench methods`: what is trained there is not trained again
DATA, SPLIT = "glyphs", "open-class"
CHOSEN = ("independent + mlp", "ract", "ract + mlp")
SEEDS = (0, 1, 2)
BATCHES = 100
BUFFER = 32
RETRIEVED = 10
"""Answers of each driving query that its retrieval log names."""
STATIC = "entropy"
"""What gains are measured against."""

WORLDS = ("other classes", "same classes")

ORDERS: Mapping[str, tuple[str, str | None]] = {
    "random": ("random", None),
    "random + flips": ("random", "flips"),
    "entropy": ("entropy", None),
    "entropy + flips": ("entropy", "flips"),
    "entropy + flips+demand": ("entropy", "flips+demand"),
    "demand": ("demand", None),
    "class_distance": ("class_distance", None),
    "class_distance + flips": ("class_distance", "flips"),
    "oracle": ("oracle", None),
}
"""Name → the static order, and what its revisions follow."""


@dataclass(frozen=True)
class World:
    """One upgrade.

    Attributes:
        queries: (Q, d) float32, by the new model. base, new: (N, d) float32, what is stored and what will be.
        old_right: (Q,) bool, answered right at 1 by the old system.
        drives: (Q,) bool, queries whose flips and retrievals are known; the others only measure.
        prototypes: (C, d) float32. labels: (N,) int64.
        demand: (N,) float32, how often the driving queries retrieved each item from the old system.
    """

    queries: F32
    base: F32
    new: F32
    relevance: Relevance
    old_right: npt.NDArray[np.bool_]
    drives: npt.NDArray[np.bool_]
    prototypes: F32
    labels: npt.NDArray[np.int64]
    demand: F32


@dataclass(frozen=True)
class Along:
    """What was seen along one refresh: `nfr` and `recall` at rising `coverage`, of either part; how often it was re-ranked."""

    coverage: list[float]
    nfr: dict[str, list[float]]
    recall: dict[str, list[float]]
    revisions: int

    def mean_nfr(self, half: str) -> float:
        """The mean over the coverage, by the trapezoid rule."""
        return trapezoid_area(self.coverage, self.nfr[half])

    def area(self, half: str, old_old: float) -> float | None:
        """The normalised area under recall."""
        recall = self.recall[half]
        return normalised_area(trapezoid_area(self.coverage, recall), old_old, recall[-1])


def run(*, say: Say | None = None, folder: Path = FOLDER, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """Train what is not trained yet, simulate every order, write <folder>/reorder.json; the document."""
    tell = say or (lambda text: None)
    root = TRAINED / code_digest()
    parts = ["old", *dict.fromkeys(f"encoder-{ARMS[name].trained}" for name in CHOSEN)]
    jobs = [Job(root, DATA, SPLIT, seed, part) for seed in seeds for part in parts]
    check_data(jobs)

    def finished(job: Job, seconds: float, done: int, total: int) -> None:
        tell(f"{done}/{total} trained: {job.part}, seed {job.seed}, {seconds:.0f} s")

    run_jobs(jobs, needs, work, processes=1, finished=finished)
    torch.set_num_threads(1)
    started = time.monotonic()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for arm in CHOSEN:
        for seed in seeds:
            for kind, world in trained_worlds(root, folder / root.name, arm, seed).items():
                for name, figures in measure(world, seed).items():
                    found.setdefault(f"{arm}, {kind}", {}).setdefault(name, []).append(figures)
            tell(f"{arm}, seed {seed}: simulated, {time.monotonic() - started:.0f} s")
    document = result.document(
        "reorder", rows_of(found), seeds=list(seeds), batches=BATCHES, code=root.name, figures=found
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reorder.json").write_text(json.dumps(document, indent=2))
    document["host"].pop("figures")
    return document


def trained_worlds(root: Path, folder: Path, arm_name: str, seed: int) -> dict[str, World]:
    """Both worlds of one arm; its adapter is fitted on training pictures alone."""
    arm, data = ARMS[arm_name], pictures(DATA)
    job = Job(folder, DATA, SPLIT, seed, f"arm-{arm_name}")
    old, new = (Job(root, DATA, SPLIT, seed, part).folder for part in ("old", f"encoder-{arm.trained}"))
    adapter = picture_jobs._adapter(job, arm, old, new)
    stored, renewed = build.load(old, "gallery"), build.load(new, "gallery")
    given = Given(
        old_queries=build.load(old, "queries"),
        queries=build.load(new, "queries"),
        stored=stored,
        base=leading(stored, renewed.shape[1]) if adapter is None else adapter.transform(stored)[0],
        new=renewed,
        asked=np.asarray(data.queries.labels),
        labels=np.asarray(data.gallery.labels),
        prototypes=load_prototypes(new)[0],
    )
    return dict(zip(WORLDS, (in_halves(given, seed), asked_twice(given, seed)), strict=True))


@dataclass(frozen=True)
class Given:
    """Vectors of queries and items (n, d), by the old and the new model, `base` stored or adapted; the class of each."""

    old_queries: F32
    queries: F32
    stored: F32
    base: F32
    new: F32
    asked: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    prototypes: F32


def in_halves(given: Given, seed: int) -> World:
    """The queries dealt in two halves, at random: one drives, one measures."""
    drives = np.zeros(len(given.queries), np.bool_)
    drives[np.random.default_rng(seed).permutation(len(drives))[: len(drives) // 2]] = True
    return world_of(given, drives)


def asked_twice(given: Given, seed: int) -> World:
    """All queries drive; one item of each class that is asked for and has others leaves the gallery and measures."""
    rng = np.random.default_rng(seed)
    rows = (np.flatnonzero(given.labels == name) for name in np.unique(given.asked))
    taken = np.array([rng.choice(some) for some in rows if len(some) > 1], np.int64)
    left = np.setdiff1d(np.arange(len(given.labels)), taken)
    more = replace(
        given,
        old_queries=np.concatenate([given.old_queries, given.stored[taken]]),
        queries=np.concatenate([given.queries, given.new[taken]]),
        asked=np.concatenate([given.asked, given.labels[taken]]),
        stored=given.stored[left],
        base=given.base[left],
        new=given.new[left],
        labels=given.labels[left],
    )
    return world_of(more, np.arange(len(more.queries)) < len(given.queries))


def world_of(given: Given, drives: npt.NDArray[np.bool_]) -> World:
    """What a simulation needs."""
    relevance = Relevance.from_labels(given.asked.tolist(), given.labels.tolist())
    retrieved = top_k(given.old_queries, given.stored, min(RETRIEVED, len(given.stored)))[1]
    return World(
        given.queries,
        given.base,
        given.new,
        relevance,
        relevance.hits(retrieved[:, :1]) & relevance.answerable,
        drives,
        given.prototypes,
        np.unique(given.labels, return_inverse=True)[1].astype(np.int64),
        np.bincount(retrieved[drives].ravel(), minlength=len(given.base)).astype(np.float32),
    )


def measure(world: World, seed: int) -> dict[str, dict[str, Any]]:
    """Every order: mean NFR and area of both parts, and what was seen along the way."""
    known = world.relevance.answerable
    old_old = {half: float(world.old_right[rows].mean()) for half, rows in halves(world, known).items()}
    found = {}
    for name, (static, follows) in ORDERS.items():
        scores = order_scores(
            static,
            world.base,
            world.prototypes,
            TEMPERATURE,
            np.random.default_rng(seed),
            labels=world.labels,
            demand=world.demand + 1,  # as the service does: what nobody asked for yet is not nothing
            new_embeddings=world.new,
        )
        along = refresh(world, plan.order_rows(scores), follows)
        found[name] = {
            "revisions": along.revisions,
            "coverage": along.coverage,
            **{f"nfr_{half}": along.nfr[half] for half in old_old},
            **{f"mean_nfr_{half}": along.mean_nfr(half) for half in old_old},
            **{f"area_{half}": along.area(half, value) for half, value in old_old.items()},
        }
    return found


def halves(world: World, known: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.bool_]]:
    """(Q,) bool of the queries that count: those that drive, and those that are held out."""
    return {"driving": world.drives & known, "held_out": ~world.drives & known}


def refresh(world: World, row_of: plan.U32, follows: str | None) -> Along:
    """One refresh, batch by batch, its plan re-ranked as the evaluator of a rollout would."""
    n = len(world.base)
    size = max(1, -(-n // BATCHES))
    answers = IncrementalTopK(world.queries, world.base.copy(), 1, min(BUFFER, n))
    settled, first = np.zeros(n, np.bool_), plan.invert(row_of)
    sets = halves(world, world.relevance.answerable)
    along = Along([], {half: [] for half in sets}, {half: [] for half in sets}, 0)
    revisions, before = 0, None
    for at in [*range(0, n, size), n]:
        found = answers.top()[1]
        right = world.relevance.hits(found)
        along.coverage.append(at / n)
        for half, rows in sets.items():
            along.nfr[half].append(float((world.old_right & ~right)[rows].mean()))
            along.recall[half].append(float(right[rows].mean()))
        if follows is not None and healing.revision_is_due(at, before, n, revisions) and at < n:
            flipped = np.flatnonzero(world.old_right & ~right & world.drives)
            credit = healing.flip_credit(found[flipped], flipped, world.relevance, settled)
            priority = healing.priorities(follows, ~settled, credit, world.demand.astype(np.float64))
            row_of = plan.rerank(row_of, np.arange(at, n), priority, first)
            revisions, before = revisions + 1, at
        rows_now = row_of[at : at + size]
        answers.apply(rows_now, world.new[rows_now])
        settled[rows_now] = True
    return Along(along.coverage, along.nfr, along.recall, revisions)


def rows_of(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[result.Row]:
    """A row an arm, world and order: mean NFR of the held-out queries, against the static order on the same queries."""
    rows = []
    for arm, orders in found.items():
        static = statistics.mean(each["mean_nfr_held_out"] for each in orders[STATIC])
        for name, figures in orders.items():
            held, driving = (
                [each[f"mean_nfr_{half}"] for each in figures] for half in ("held_out", "driving")
            )
            areas = [each["area_held_out"] for each in figures]
            value = statistics.mean(held)
            rows.append(
                result.Row(
                    row=0,
                    name=f"{arm}: {name}; mean NFR of each seed {', '.join(f'{v:.4f}' for v in held)}; driving "
                    f"{statistics.mean(driving):.4f}; area {_mean(areas)}; "
                    f"{statistics.mean(each['revisions'] for each in figures):.0f} revisions",
                    value=round(value, 4),
                    unit="mean NFR, held-out queries",
                    against=f"{STATIC} {static:.4f}",
                    ratio=round(value / static, 3) if static else None,
                )
            )
    return rows


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if len(known) == len(values) else "–"
