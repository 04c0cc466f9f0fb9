"""Row 14: from `start` to the first answer by the new model, at 1e3 and at 1e6 stored vectors, without an adapter."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.refreshed import load, register
from bench.result import Row, median, quartiles
from bench.scratch import another_context, scratch_context
from orchestrator.context import Context
from orchestrator.ledger.rows import GalleryRow
from orchestrator.service import rollouts
from orchestrator.service import start as starting
from orchestrator.serving.replica import Replica
from orchestrator.settings import Settings

DIM = 64
LIMIT_S = 5.0


@dataclass(frozen=True)
class Taken:
    """Seconds from the call of `start` to its return, and to the first answer by the new model."""

    accepted_s: float
    answered_s: float


def run(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Medians of `repeats`: synthetic vectors, a measured certificate, a replica of its own that follows the log."""
    sizes = (1_000, 100_000 if quick else 1_000_000)
    with scratch_context(settings) as context:
        register(context, DIM)
        loaded = {n: load(context, n, DIM) for n in sizes}
        taken: dict[int, list[Taken]] = {n: [] for n in sizes}
        for _ in range(repeats):
            for n in sizes:
                taken[n].append(_deploy(context, loaded[n]))
    return [_row(n, taken[n], sizes[0], taken[sizes[0]]) for n in sizes]


def _row(n: int, taken: list[Taken], first: int, of_first: list[Taken]) -> Row:
    answered = [each.answered_s for each in taken]
    smallest = median([each.answered_s for each in of_first])
    return Row(
        14,
        f"`start` to the first new-model answer, {n:,} × {DIM} synthetic vectors, stub encoder, no adapter: "
        f"median of {len(taken)}, {quartiles(answered)}; accepted after {median([each.accepted_s for each in taken]):.3f} s",
        median(answered),
        "s",
        f"at {first:,}: {smallest:.3f} s",
        median(answered) / smallest,
        f"<= {LIMIT_S:g} s",
        median(answered) <= LIMIT_S,
    )


def _deploy(context: Context, gallery: GalleryRow) -> Taken:
    """Start, ask without a pause until the new model answers, and roll back.

    The replica has a context of its own, as its own process has: it loads the new model when it first needs it.
    """
    with another_context(context) as serving, Replica(serving, gallery) as replica:
        replica.follow()
        assert replica.search(["query 7"], k=5)[0].model == "old"
        started = time.perf_counter()
        rollout = starting.start(context, starting.StartRequest(gallery.name, "new", order="random"))
        accepted_s = time.perf_counter() - started
        while (answer := replica.search(["query 7"], k=5)[0]).model != "new":
            assert replica.error is None, replica.error
        answered_s = time.perf_counter() - started
    assert answer.hits[0].key == "7", "the new model finds what it looks for in the old vectors"
    rollouts.rollback(context, rollout.id)
    return Taken(accepted_s, answered_s)
