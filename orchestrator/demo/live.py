"""A real rollout, watched: start, first answer, a worker killed with SIGKILL half-way, the end, and what was lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.errors import HotrefreshError, WaitTimeoutError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service import rollouts
from orchestrator.service import start as starting
from orchestrator.service.background import start_worker
from orchestrator.serving.embedding import encode_uris
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica

LEASE_S = 2.0
TIMEOUT_S = 300.0


@dataclass
class Watched:
    """What was seen of one rollout. Times are seconds since `start` was called; coverage 0..1."""

    rollout_id: int = 0
    first_answer_s: float | None = None
    adapter_rate_per_s: float | None = None
    killed_s: float | None = None
    resumed_s: float | None = None
    finished_s: float = 0.0
    failed_searches: int = 0
    searches: int = 0
    progress: list[tuple[float, float]] = field(default_factory=list)
    events: list[tuple[float, str, bool]] = field(default_factory=list)


class Searcher:
    """Searches one query again and again, as a user would, while the gallery changes under it."""

    def __init__(self, replica: Replica, query: Any, new_model: str) -> None:
        self._replica, self._query, self._new_model = replica, query, new_model
        self._stop = threading.Event()
        self.first_new_answer: float | None = None
        self.searches = self.failures = 0
        self._thread = threading.Thread(target=self._run, name="searcher", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                answer = self._replica.search([self._query], k=5)[0]
            except HotrefreshError:
                self.failures += 1
                continue
            self.searches += 1
            if self.first_new_answer is None and answer.model == self._new_model:
                self.first_new_answer = time.monotonic()

    def __enter__(self) -> Searcher:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=30)


def hot_refresh(
    context: Context,
    gallery: GalleryRow,
    request: starting.StartRequest,
    query: Any,
    worker: subprocess.Popen[bytes],
    *,
    kill_at: float | None,
    shown: Callable[[float, dict[str, Any]], None],
) -> tuple[Watched, subprocess.Popen[bytes]]:
    """Run one rollout to finalizable; returns what was seen and the worker that finished it.

    Args:
        kill_at: coverage at which the worker is killed with SIGKILL and another one started; None: never.
        shown: called with the coverage and the row of reporting.rollout_status, several times a second.
    """
    seen = Watched()
    with Replica(context, gallery) as replica, Searcher(replica, query, request.to_model) as searcher:
        replica.follow()
        started = time.monotonic()
        row = starting.start(context, request)
        seen.rollout_id = row.id
        seen.events.append(
            (time.monotonic() - started, "start accepted, serving flipped to the new model", False)
        )
        while row.state not in (RolloutState.FINALIZABLE, RolloutState.FINALIZED):
            now = time.monotonic() - started
            if row.state in (RolloutState.PAUSED, RolloutState.FAILED):
                raise HotrefreshError(f"rollout {row.id} is {row.state}: {row.reason}")
            if now > TIMEOUT_S:
                raise WaitTimeoutError(
                    f"rollout {row.id} did not finish in {TIMEOUT_S:.0f} s; it is {row.state}."
                )
            coverage = row.committed_items / row.n_items
            if not seen.progress or coverage > seen.progress[-1][1]:
                seen.progress.append((now, coverage))
            if kill_at is not None and seen.killed_s is None and coverage >= kill_at:
                seen.killed_s, worker = now, _kill(context, worker)
                seen.events.append((now, f"worker killed with SIGKILL at {coverage:.0%}", True))
            shown(coverage, _status(context, row.id))
            time.sleep(0.1)
            row = rollouts.reread(context, row.id)
        seen.finished_s = time.monotonic() - started
        seen.progress.append((seen.finished_s, row.committed_items / row.n_items))
        seen.events.append((seen.finished_s, "every batch committed: finalizable", False))
        shown(1.0, _status(context, row.id))
        _wait(lambda: searcher.first_new_answer is not None, "no answer by the new model")
        assert searcher.first_new_answer is not None
        seen.first_answer_s = searcher.first_new_answer - started
        seen.events.append((seen.first_answer_s, "first answer by the new model", True))
        seen.searches, seen.failed_searches = searcher.searches, searcher.failures
    if "adapted_s" in row.config:
        seen.adapter_rate_per_s = row.n_items / max(float(row.config["adapted_s"]), 1e-9)
    seen.resumed_s = _first_commit_after(context, row, seen.killed_s)
    seen.events.sort()
    return seen, worker


def _kill(context: Context, worker: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    return start_worker(context)


def _status(context: Context, rollout_id: int) -> dict[str, Any]:
    with transaction(context.engine) as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def _wait(done: Callable[[], bool], otherwise: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise WaitTimeoutError(f"{otherwise} within {timeout_s:.0f} s.")
        time.sleep(0.02)


def _first_commit_after(context: Context, row: RolloutRow, killed_s: float | None) -> float | None:
    """Seconds since the start at which the first batch of a later attempt was committed."""
    if killed_s is None or row.deployed_at is None:
        return None
    with transaction(context.engine) as connection:
        times = batch_queries.batch_times(connection, row.id)
    base = row.created_at
    later = [(t["committed_at"] - base).total_seconds() for t in times]  # type: ignore[operator]
    after = [at for at in later if at > killed_s]
    return min(after) if after else None


def wait_for_evaluation(context: Context, rollout_id: int) -> None:
    """Wait until the flips are counted up to the rollout's last batch; count them here where no worker does."""
    from orchestrator.service.evaluate import evaluate_rollout

    with contextlib.suppress(WaitTimeoutError):
        _wait(lambda: _evaluated(context, rollout_id), "no evaluation", timeout_s=20.0)
        return
    evaluate_rollout(context, rollout_id, {})


def _evaluated(context: Context, rollout_id: int) -> bool:
    with transaction(context.engine) as connection:
        newest = read_view(connection, "flip_summary", newest=True, rollout=rollout_id, k=1, slice="all")
    return bool(newest) and newest[0]["coverage"] >= 1.0


@dataclass(frozen=True)
class Audit:
    """A full check of a finished rollout against its extents: counts of items."""

    lost: int
    duplicated: int
    falsified: int
    quarantined: int


def check_nothing_lost(context: Context, rollout_id: int, sample: int = 256, seed: int = 0) -> Audit:
    """Read every committed byte with its checksum, count every row, and re-embed a random sample to compare.

    lost: rows neither committed nor quarantined. duplicated: rows that more than one committed batch brought.
    falsified: sampled rows whose stored vector is not what the encoder gives for the item.
    """
    from orchestrator.serving.matrix import read_batch

    with context.engine.connect() as connection:
        row = rollout_queries.rollout_by_id(connection, rollout_id)
        assert row is not None
        brought = np.zeros(row.n_items, np.int64)
        for entry in log_queries.committed_batches(connection, rollout_id, 2**62):
            np.add.at(brought, read_batch(connection, row, entry).rows, 1)
        matrix = load_matrix(connection, row.gallery_id)
        rng = np.random.default_rng(seed)
        chosen = np.sort(
            rng.choice(np.flatnonzero(brought), min(sample, int((brought > 0).sum())), replace=False)
        )
        uris = {
            i.row: i.uri for i in gallery_queries.items_of_rows(connection, row.gallery_id, chosen.tolist())
        }
        encoder = context.encoder(model_queries.model_by_id(connection, row.to_model_id))
    fresh, _ = encode_uris(encoder, [uris[int(r)] for r in chosen])
    same = np.abs(fresh - matrix.vectors[chosen]).max(axis=1) < 1e-4
    return Audit(
        lost=int((brought == 0).sum()) - row.quarantined_items,
        duplicated=int(np.maximum(brought - 1, 0).sum()),
        falsified=int((~same).sum()),
        quarantined=row.quarantined_items,
    )


def stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """Ask a worker to finish its batch and leave; kill it when it does not."""
    worker.terminate()
    try:
        worker.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
