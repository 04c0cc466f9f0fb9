"""Connections that fail in the ways that clients do not notice, between real workers, real Valkey and real PostgreSQL."""

from __future__ import annotations

import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from orchestrator.bootstrap import open_context
from orchestrator.demo.live import check_nothing_lost
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import background
from tests.engine import platform
from tests.faults.proxy import CutWhen, Moment, Proxy, Sliced, Slow

HALF_OPEN_LIMIT_S = 15.0
COMMIT = b"hotrefresh.commit_batch"


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def behind(world):
    """Proxies before the broker and the ledger, and a way to start workers that know only these."""
    with ExitStack() as stack:
        proxies = {}
        given = {}
        for name in ("broker_url", "database_url"):
            parts = urlsplit(getattr(world.settings, name))
            proxies[name] = stack.enter_context(Proxy((parts.hostname, parts.port), seed=11))
            login = parts.netloc.rpartition("@")[0]
            given[name] = parts._replace(netloc=f"{login}@127.0.0.1:{proxies[name].port}").geturl()
        hurt = stack.enter_context(open_context(world.settings.model_copy(update=given), migrate=False))
        yield Behind(stack, hurt, proxies["broker_url"], proxies["database_url"])


class Behind:
    """What stands behind the two proxies."""

    def __init__(self, stack, context, broker, ledger):
        self._stack, self._context, self.broker, self.ledger = stack, context, broker, ledger

    def start_worker(self):
        """A worker process, ended with the test and before its proxies."""
        worker = background.start_worker(self._context)

        def end():
            worker.kill()
            worker.wait()

        self._stack.callback(end)
        return worker


def until(condition, timeout_s=90.0):
    """Wait for something to become true; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"it did not come true in {timeout_s} s"
        time.sleep(0.02)
    return time.monotonic() - started


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def finished(context, rollout_id):
    return lambda: status(context, rollout_id)["state"] == "finalizable"


def effects_are_single(context, rollout_id):
    """Every effect of a commit was counted once: rows, log, progress, bands."""
    found = check_nothing_lost(context, rollout_id)
    assert (found.lost, found.duplicated, found.falsified) == (0, 0, 0)
    with context.engine.connect() as connection:
        (row,) = connection.execute(
            text("SELECT n_items, n_batches, committed_items, committed_batches FROM rollout WHERE id = :id"),
            {"id": rollout_id},
        )
        items, batches = connection.execute(
            text("SELECT sum(items), sum(batches) FROM progress WHERE rollout_id = :id"), {"id": rollout_id}
        ).one()
        banded = connection.execute(
            text("SELECT sum(committed) FROM band_progress WHERE rollout_id = :id"), {"id": rollout_id}
        ).scalar_one()
        seqs = connection.scalars(
            text("SELECT seq FROM batch WHERE rollout_id = :id AND state = 'committed' ORDER BY seq"),
            {"id": rollout_id},
        ).all()
    assert (row.committed_items, row.committed_batches) == (row.n_items, row.n_batches) == (items, batches)
    assert banded == row.n_batches
    assert seqs == list(range(seqs[0], seqs[0] + row.n_batches)), "the log has neither gap nor double"


def test_a_half_open_broker_connection_is_noticed_and_work_flows_again(world, behind, record_property):
    behind.start_worker()
    log = background.worker_log(world.settings)
    until(lambda: log.exists() and '"worker.listening"' in log.read_text())
    assert behind.broker.half_open_now() >= 1
    row = platform.start(world)  # its wake-up goes to the broker, and from there into the dead connection
    took_s = until(lambda: status(world, row.id)["committed"] > 0)
    record_property("half_open_s", took_s)
    print(
        f"half-open broker connection: work flowed again after {took_s:.1f} s (limit {HALF_OPEN_LIMIT_S:.0f} s)"
    )
    assert took_s <= HALF_OPEN_LIMIT_S
    until(finished(world, row.id))
    effects_are_single(world, row.id)


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())
def test_a_commit_whose_answer_is_lost_has_one_effect(world, behind, moment):
    behind.start_worker()
    behind.ledger.set(CutWhen(COMMIT, moment=moment, times=3))
    row = platform.start(world)
    until(finished(world, row.id))
    assert behind.ledger.cuts == 3
    effects_are_single(world, row.id)
    with world.engine.connect() as connection:
        attempts = batch_queries.attempts_histogram(connection, row.id)
    assert sum(attempts.values()) == row.n_items // row.batch_size
    if moment is Moment.ANSWERED:
        assert set(attempts) == {1}, "what has landed is asked for, never redone"


@pytest.mark.parametrize("mode", [Sliced(), Slow(bytes_per_s=60_000)], ids=["sliced", "slow"])
def test_a_rollout_over_bad_lines_ends_with_every_checksum_right(world, behind, mode):
    for proxy in (behind.broker, behind.ledger):
        proxy.set(mode)
    behind.start_worker()
    row = platform.start(world)
    until(finished(world, row.id), timeout_s=150)
    effects_are_single(world, row.id)
    assert sum(sum(c.forwarded.values()) for c in behind.ledger.connections()) > 10_000
