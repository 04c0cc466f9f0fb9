"""Draining a rollout: work on its batches until there is nothing to claim, the time is over, or something stops it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.encoders import Encoder
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ModelRow
from workers.control import WORKABLE
from workers.encode import PlacedEncoder, placed_once
from workers.pipeline import Pipeline
from workers.recode import Coder, RecodePipeline
from workers.work import DrainResult


def drain(
    context: Context,
    rollout_id: int,
    *,
    owner: str,
    stop: threading.Event | None = None,
    hurry: threading.Event | None = None,
    slice_s: float | None = None,
    committed: Callable[[int], None] = lambda seq: None,
    encoder: Encoder | None = None,
) -> DrainResult:
    """Work on a rollout until nothing can be claimed, `stop` is set, or something fails that a retry will not mend.

    Args:
        owner: this worker's id, written into the leases.
        stop: claim nothing more and finish what is held.
        hurry: give back what is held.
        slice_s: claim nothing more after so many seconds: another rollout may be waiting.
        committed: called in the writer's thread after each commit, with its sequence number.
        encoder: used instead of the registered model's (benchmarks).
    """
    with transaction(context.engine) as connection:
        rollout = rollout_queries.rollout_by_id(connection, rollout_id)
        if rollout is None or rollout.state not in WORKABLE or rollout.n_batches == rollout.committed_batches:
            return DrainResult()
        model = model_queries.model_by_id(connection, rollout.to_model_id)
    started = time.monotonic()
    line = RecodePipeline if rollout.how.recodes else Pipeline
    pipeline = line(
        context,
        rollout,
        encoder or placed(context, model),
        owner,
        stop or threading.Event(),
        hurry or threading.Event(),
        started + slice_s if slice_s is not None else float("inf"),
        committed,
    )
    with _no_long_collections():
        pipeline.run()
    pipeline.result.wall_s = time.monotonic() - started
    return pipeline.result


def placed(context: Context, model: ModelRow) -> PlacedEncoder | Coder:
    """The model's encoder on this worker's device, put there once a process, not once a slice."""
    if model.base_model_id is not None:
        return Coder(context, model)
    settings = context.settings
    encoder = context.encoder(model)
    return placed_once(encoder, settings.device, settings.precision, settings.compile_encoder)  # type: ignore[arg-type]


@contextmanager
def _no_long_collections() -> Iterator[None]:
    """Leave what lives already out of garbage collection; the drain's own garbage is collected as ever.

    With torch loaded that is a quarter of a million objects: each full collection stops every thread for 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
