"""A real run of `hotrefresh demo --fast`, and after it one more refresh of its gallery that stands half-way."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.core.states import TERMINAL, RolloutState
from orchestrator.demo import live, story
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import background, rollouts
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.start import StartRequest, start
from orchestrator.settings import Settings
from tests.engine.api_server import until

QUERIES = story.QUERIES
GATES = [
    {"measure": "negative_flip_rate", "limit": 0.10, "minimum_n": 200},
    {"measure": "recall_loss", "limit": 0.02, "minimum_n": 200},
    {"measure": "quarantine_rate", "limit": 0.01, "minimum_n": 200, "effect": "alert"},
]
BATCH_SIZE = 128


@contextmanager
def half_way(data_dir: Path) -> Iterator[tuple[Context, int]]:
    """The demo's ledger in `data_dir`/demo, its gallery taken back and refreshed again to the middle; and that rollout's id."""
    settings = Settings(
        data_dir=data_dir / "demo",
        batch_size=BATCH_SIZE,
        lease_s=10.0,
        heartbeat_s=0.5,
        flip_ks=[1, 10],
        gate=GATES,
    )
    with open_context(settings) as context:
        worker = background.start_worker(context)
        try:
            yield context, _refresh_to_the_middle(context)
        finally:
            _end(worker)


def _refresh_to_the_middle(context: Context) -> int:
    with context.engine.connect() as connection:
        last = read_view(connection, "rollout_status", gallery=story.GALLERY)[0]
    rollouts.rollback(context, last["id"], "search complained about the letter R")
    # Of the whole gallery: the random refresh that it simulates stands beside the one that is measured.
    certify(
        context, CertifyRequest(story.OLD, "glyphs-ract", story.GALLERY, QUERIES, story.ADAPTER, sample=10**6)
    )
    row = start(context, StartRequest(story.GALLERY, "glyphs-ract", adapter=story.ADAPTER, prototypes="head"))
    until(lambda: _coverage(context, row.id) >= 0.5, seconds=300)
    rollouts.pause(context, row.id, "looking at the flips")
    until(lambda: _is_counted(context, row.id), seconds=120)
    return row.id


def _is_counted(context: Context, rollout_id: int) -> bool:
    """Whether the flips are counted up to the last batch; the worker does, unless it is too late for it."""
    evaluate_rollout(context, rollout_id, {})
    with context.engine.connect() as connection:
        counted = read_view(connection, "flip_summary", newest=True, rollout=rollout_id, k=1, slice="all")
    return bool(counted) and counted[0]["coverage"] >= _coverage(context, rollout_id)


def _coverage(context: Context, rollout_id: int) -> float:
    row = rollouts.reread(context, rollout_id)
    assert row.state not in (RolloutState.FAILED, *TERMINAL), f"{row.state}: {row.reason}"
    return row.committed_items / row.n_items


def _end(worker: subprocess.Popen[bytes]) -> None:
    live.stop_worker(worker)
