"""A vision transformer's upgrade from layer norm to dynamic token normalisation: compatibility, flips, cost."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import result
from bench.upgrades.data import PICTURES, pictures
from bench.upgrades.job import Job, code_digest, result_of
from bench.upgrades.norm_jobs import BARE, LIFTED, NEW, SIZES, jobs_of, needs, work
from bench.upgrades.summary import Figure
from bench.upgrades.table import cell, table
from models import recipes
from models.encoders.normalisation import DynamicTokenNorm, extra_multiply_adds
from models.errors import UsageError
from orchestrator.demo.jobs import run_jobs

Say = Callable[[str], None]
Results = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]
"""Data, size, norm -> the results of its seeds."""

FOLDER = Path("bench-results/dtn")
SEEDS = (0, 1, 2)
COST = "cost"
DEFAULT = ("glyphs/small", COST)
_BATCH, _GRID, _WIDTH, _HEADS, _REPEATS = 32, 14, 384, 6, 7


def run(
    *,
    only: Sequence[str] = (),
    say: Say | None = None,
    folder: Path = FOLDER,
    seeds: Sequence[int] = SEEDS,
    processes: int | None = None,
) -> dict[str, Any]:
    """Measure what is not measured yet, write <folder>/{dtn.json,dtn.md}; the document.

    Args:
        only: parts to measure, each DATA/SIZE, or "cost", of one norm; empty: glyphs/small and cost.
        processes: side by side, one core each; None: as many as there are cores.

    Raises UsageError for a part that does not exist and for data whose package is missing.
    """
    root = folder / code_digest()
    parts = list(only or DEFAULT)
    jobs = [job for part in parts if part != COST for job in _jobs_of(root, part, seeds)]
    for data in dict.fromkeys(job.data for job in jobs):
        pictures(data)  # a missing package shows before the first training
    started = time.monotonic()

    def finished(job: Job, seconds: float, done: int, total: int) -> None:
        if say is not None:
            left = (time.monotonic() - started) / done * (total - done)
            say(f"{done}/{total} seed {job.seed} {job.part}: {seconds:.0f} s, about {left:.0f} s left")

    run_jobs(jobs, needs, work, processes=processes or os.cpu_count() or 1, finished=finished)
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job.kind == NEW:
            found.setdefault((job.data, job.split, job.name), []).append(result_of(job))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dtn.md").write_text(markdown(found), encoding="utf-8")
    measured = [*rows(found), *(cost() if COST in parts else [])]
    document = result.document(
        "dtn", measured, seeds=list(seeds), code=root.name, table=str(folder / "dtn.md")
    )
    (folder / "dtn.json").write_text(json.dumps(document, indent=2))
    return document


def _jobs_of(root: Path, part: str, seeds: Sequence[int]) -> list[Job]:
    data, _, size = part.partition("/")
    if data not in PICTURES or size not in SIZES:
        parts = ", ".join(f"{each}/{one}" for each in PICTURES for one in SIZES)
        raise UsageError(f"there is no part {part!r} to measure: choose one of {parts}, {COST}")
    return jobs_of(root, data, size, seeds)


def rows(found: Results) -> list[result.Row]:
    """Two rows a norm: recall against the stored embeddings beside the old system's. Nothing is a target."""
    made = []
    for (data, size, norm), results in found.items():
        old = _figure(results, lambda one: one["old_old"])
        for way in (BARE, LIFTED):
            start = _figure(results, lambda one, w=way: one[w]["new_old"])
            assert start.mean is not None
            made.append(
                result.Row(
                    row=0,
                    name=f"{data} {size}: layer norm to {norm}, {way}, M(new,old) {cell(start)}",
                    value=round(start.mean, 4),
                    unit="R@1",
                    against=f"M(old,old) {cell(old)}",
                    ratio=round(start.mean / old.mean, 3) if old.mean else None,
                )
            )
    return made


def cost(repeats: int = _REPEATS) -> list[result.Row]:
    """One norm of a ViT-S, forward on one thread: layer norm, dynamic with P cached, and with P computed each time.

    Seconds of the processor, not of the clock: others may use it meanwhile.
    """
    torch.set_num_threads(1)
    tokens = torch.randn(_BATCH, _GRID**2, _WIDTH, generator=torch.Generator().manual_seed(0))
    made = {
        "layer norm": nn.LayerNorm(_WIDTH).eval(),
        "dtn, P cached": DynamicTokenNorm(_WIDTH, _HEADS, _GRID).eval(),
        "dtn, P computed": DynamicTokenNorm(_WIDTH, _HEADS, _GRID).train(),
        "dtn_var, P cached": DynamicTokenNorm(_WIDTH, _HEADS, _GRID, variance_only=True).eval(),
        "dtn published, P cached": DynamicTokenNorm(
            _WIDTH, _HEADS, _GRID, pre_rms=False, gates="one", unbiased_var=False
        ).eval(),
    }
    with torch.inference_mode():
        for norm in made.values():
            norm(tokens)
        taken: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(repeats):
            for name, norm in made.items():  # in turns: a slow moment hits all
                started = time.thread_time()
                norm(tokens)
                taken[name].append(time.thread_time() - started)
    layer = result.median(taken["layer norm"])
    return [
        result.Row(
            row=0,
            name=f"{name}, {_BATCH} x {_GRID**2} x {_WIDTH}, {_HEADS} heads, {result.quartiles(taken[name], 1000)}",
            value=round(1000 * result.median(taken[name]), 2),
            unit="ms of a core",
            against=f"layer norm {1000 * layer:.2f} ms, {extra_multiply_adds(_WIDTH, _GRID) / 1e6:.1f} M multiply-adds more",
            ratio=round(result.median(taken[name]) / layer, 1),
        )
        for name in made
        if name != "layer norm"
    ]


def markdown(found: Results) -> str:
    """Three tables a part: mean ± half width of the 95 % interval over the seeds."""
    parts = []
    for data, size in dict.fromkeys(key[:2] for key in found):
        norms = {norm: found[data, size, norm] for norm in recipes.NORMS if (data, size, norm) in found}
        first = next(iter(norms.values()))
        old = cell(_figure(first, lambda one: one["old_old"]))
        parts += [f"### {data}, {size}, {len(first)} seeds", f"M(old,old) = {old}."]
        titles = ["new norm", "M(new,new)", "training, s", "256 pictures, ms", "parameters"]
        parts.append(table(titles, [[norm, *_models(results)] for norm, results in norms.items()]))
        for way, said in ((BARE, "stored embeddings as they are"), (LIFTED, "lifted by an mlp adapter")):
            lines = [[norm, *_refreshes(results, way)] for norm, results in norms.items()]
            parts += [f"The refresh, {said}:", table(["new norm", *_REFRESH_TITLES], lines)]
    return "\n\n".join(parts) + "\n"


_REFRESH_TITLES = (
    "M(new,old)", "lowest − M(old,old)", "NFR at the start", "mean NFR", "max NFR", "mean NFR, random order"
)  # fmt: skip


def _models(results: Sequence[Mapping[str, Any]]) -> list[str]:
    seconds, embed = (statistics.median(one[key] for one in results) for key in ("train_seconds", "embed_ms"))
    recall = cell(_figure(results, lambda one: one["new_new"]))
    return [recall, f"{seconds:.0f}", f"{embed:.0f}", f"{results[0]['parameters']:,}"]


def _refreshes(results: Sequence[Mapping[str, Any]], way: str) -> list[str]:
    """In entropy order unless said."""
    values: list[Callable[[Mapping[str, Any]], float]] = [
        lambda one: one[way]["new_old"],
        lambda one: min(one[way]["entropy"]["recall"]) - one["old_old"],
        lambda one: one[way]["entropy"]["nfr"][0],
        lambda one: statistics.fmean(one[way]["entropy"]["nfr"]),
        lambda one: max(one[way]["entropy"]["nfr"]),
        lambda one: statistics.fmean(one[way]["random"]["nfr"]),
    ]
    return [cell(_figure(results, value)) for value in values]


def _figure(results: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> Figure:
    return Figure("", "", "", "", "", tuple(value(one) for one in results))
