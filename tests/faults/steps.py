"""What a forked child does: one step of the real work each, through the doors that workers and the command line use."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import Any

from orchestrator import failpoints
from orchestrator.context import Context
from orchestrator.service import start as starting
from tests.faults import oracle, world

Reply = dict[str, Any]


def preload() -> None:
    """Import what the steps need, so that children need not."""
    for name in ("torch", "psycopg", "redis", "kombu.transport.redis", "sqlalchemy.dialects.postgresql.psycopg",
                 "workers.app", "workers.drain", "workers.pipeline", "orchestrator.service.start",
                 "orchestrator.service.finish", "orchestrator.bootstrap", "orchestrator.broker",
                 "orchestrator.serving.replica", "orchestrator.serving.evaluator", "orchestrator.index.faiss_flat",
                 "orchestrator.core.prototypes", "orchestrator.core.orders.random", "models.encoders.factory",
                 "models.datasets.inline", "celery.app.task", "tests.faults.encoder"):  # fmt: skip
        import_module(name)


def work(context: Context, rollout_id: int, batches: int | None = None) -> Reply:
    """Drain; after `batches` commits no further one is claimed."""
    from workers.drain import drain

    stop, sequence = threading.Event(), []

    def committed(seq: int) -> None:
        sequence.append(seq)
        if batches is not None and len(sequence) >= batches:
            stop.set()

    result = drain(context, rollout_id, owner=owner(), stop=stop, committed=committed)
    failure = result.failure
    return {
        "committed": sequence,
        "refused": result.refused,
        "failure": None if failure is None else f"{type(failure).__name__}: {failure}",
    }


def unseen(context: Context, rollout_id: int) -> Reply:
    """Drain, and once lose the connection between a commit and its answer, as the driver reports it."""
    import psycopg
    from sqlalchemy.exc import OperationalError

    def lose_the_answer() -> None:
        lost = psycopg.OperationalError("the connection is closed")
        raise OperationalError("COMMIT", {}, lost, connection_invalidated=True)

    failpoints._armed["commit_unseen"] = failpoints._Armed(lose_the_answer, 1)
    return work(context, rollout_id)


def fired() -> list[str]:
    """The armed points of this process that have acted."""
    return [point for point, armed in failpoints._armed.items() if armed._countdown <= 0]


def owner() -> str:
    """The name under which this process leases."""
    return f"forked-{os.getpid()}"


def task(context: Context, rollout_id: int) -> Reply:
    """What a wake-up does in a worker."""
    from workers.app import build_app
    from workers.runtime import Runtime

    runtime = Runtime(context)
    # A worker goes on with whichever rollout is next: here that would be another test lane's.
    vars(runtime)["_next_rollout"] = lambda: None
    build_app(runtime).tasks["hotrefresh.drain"](rollout_id, 1)
    return {}


def follow(context: Context, gallery: str, rollout_id: int, tries: int = 2) -> Reply:
    """Load a replica, commit a few batches, let the replica catch up; a fault there is tried again.

    Returns how far what it serves is from the ledger: sentences, none when all is right.
    """
    replica = oracle.open_replica(context, gallery)
    done = work(context, rollout_id, batches=2)
    faults = []
    for _ in range(tries):
        try:
            replica.catch_up()
            break
        except Exception as error:  # noqa: BLE001 — whatever was injected
            faults.append(type(error).__name__)
    return {"wrong": oracle.replica_differs(context, replica), "faults": faults, **done}


def start(context: Context, gallery: str, at: float = 0.0) -> Reply:
    """Start a rollout, at a given moment where several shall start at once."""

    time.sleep(max(0.0, at - time.time()))
    return {"rollout_id": starting.start(context, world.request(gallery)).id}


def verb(context: Context, name: str, rollout_id: int) -> Reply:
    """One of the operator's verbs, or `complete` or `advance`, which are the workers'."""
    from orchestrator.service import advance, rollouts

    act = advance.advance if name == "advance" else getattr(rollouts, name)
    started = time.monotonic()
    row = act(context, rollout_id)
    return {"state": row.state, "took_s": time.monotonic() - started}


def revise(context: Context, rollout_id: int) -> Reply:
    """Re-rank what waits, another way in each process."""
    import numpy as np

    from orchestrator.service import revisions, rollouts

    items = rollouts.reread(context, rollout_id).plan_items
    priority = np.random.default_rng(os.getpid()).random(items, dtype=np.float32)
    written = revisions.write_revision(context, rollout_id, "flips", priority)
    return {"revision": None if written is None else written.no}


def evaluate(context: Context, rollout_id: int) -> Reply:
    """Bring the flips to the log's end."""
    from orchestrator.service.evaluate import evaluate_rollout

    with contextlib.closing(context):
        return {"batches": evaluate_rollout(context, rollout_id, {})}


STEPS: MappingProxyType[str, Callable[..., Reply]] = MappingProxyType(
    {
        "work": work,
        "task": task,
        "unseen": unseen,
        "follow": follow,
        "start": start,
        "verb": verb,
        "evaluate": evaluate,
        "revise": revise,
    }
)
