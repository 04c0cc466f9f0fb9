"""Row 1: commit one batch (guard, sequence, roll-ups, fsync) beside a 4 KiB fdatasync, at 1e5 and at 1e8 items."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

from bench.scratch import register_network, row, scratch_context
from orchestrator.context import Context
from orchestrator.core.plan import band_of, batch_count
from orchestrator.ledger.database import Line, transaction
from orchestrator.ledger.queries import batches, galleries, rollouts

BATCH = 1024


def run(
    repeats: int = 5, small: int = 100_000, large: int = 100_000_000, samples: int = 90
) -> list[dict[str, Any]]:
    """p50 of `samples` commits in each of two ledgers, in turns with fdatasyncs of 4 KiB and per-item UPDATEs."""
    with scratch_context() as context:
        model = register_network(context, "bench", 0)
        ids = {n: _rollout(context, model.id, n) for n in (small, large)}
        line = Line(context.engine)  # as the drain's writer has one
        probe = os.open(context.settings.data_dir / "probe", os.O_RDWR | os.O_CREAT)
        os.pwrite(probe, bytes(1 << 20), 0)
        taken: dict[str, list[float]] = {"fdatasync": [], "small": [], "large": []}
        for _ in range(samples):
            taken["fdatasync"].append(_sync(probe))
            taken["small"].append(_commit(context, line, ids[small]))
            taken["large"].append(_commit(context, line, ids[large]))
        per_item = statistics.median(_update_items(context, ids[small]) for _ in range(repeats))
        line.close()
        os.close(probe)
    p50 = {name: statistics.median(values) for name, values in taken.items()}
    ratio, growth = p50["large"] / p50["fdatasync"], p50["large"] / p50["small"]
    return [
        row(1, f"commit one batch of {BATCH:,}, {large:,} items, p50 of {samples}", p50["large"] * 1e3, "ms",
            f"4 KiB fdatasync, {p50['fdatasync'] * 1e3:.2f} ms", ratio, "<= 1.5", ratio <= 1.5),
        row(1, f"the same, {small:,} items", p50["small"] * 1e3, "ms", f"p50({large:,}) / p50({small:,})", growth, "<= 1.1",
            growth <= 1.1),
        row(1, f"UPDATE of {BATCH:,} item rows instead", per_item * 1e3, "ms", "one commit", per_item / p50["large"],
            "(peer)", True),
    ]  # fmt: skip


def _rollout(context: Context, model_id: int, n: int) -> int:
    with transaction(context.engine) as connection:
        gallery = galleries.insert_gallery(connection, name=f"bench-{n}", modality="image", source="bench")
        assert gallery is not None
        rollout = rollouts.insert_rollout(
            connection, gallery_id=gallery, kind="initial", from_model_id=None, to_model_id=model_id, adapter_id=None,
            certificate_id=None, order_name="row", config={}, batch_size=BATCH, n_items=n,
            extent_uri=str(Path("/nowhere")), actor="bench",
        )  # fmt: skip
        assert rollout is not None
        count = batch_count(n, BATCH)
        rollouts.insert_batches(
            connection,
            rollout,
            [(no, min(BATCH, n - no * BATCH), band_of(no, count), None) for no in range(count)],
        )
        rollouts.set_state(connection, rollout, "backfilling", reason=None, bump_generation=False)
    return rollout


def _commit(context: Context, line: Line, rollout_id: int) -> float:
    with transaction(context.engine) as connection:
        claim = batches.claim_batch(connection, rollout_id, "bench", 600)
    assert claim is not None, "more samples than batches"
    started = time.perf_counter()
    with line.use() as connection:
        seq = batches.commit_batch(connection, claim, crc=1, holes=[], decode_s=0, encode_s=0, store_s=0)
    taken = time.perf_counter() - started
    assert seq is not None
    return taken


def _sync(descriptor: int) -> float:
    started = time.perf_counter()
    os.pwrite(descriptor, os.urandom(4096), 0)
    os.fdatasync(descriptor)
    return time.perf_counter() - started


def _update_items(context: Context, rollout_id: int) -> float:
    """What a ledger with one row an item would do for each batch."""
    with transaction(context.engine) as connection:
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS bench_item (row bigint PRIMARY KEY, version bigint NOT NULL)"
        )
        connection.exec_driver_sql(
            f"INSERT INTO bench_item SELECT n, 0 FROM generate_series(0, {20 * BATCH}) n ON CONFLICT DO NOTHING"
        )
    started = time.perf_counter()
    with transaction(context.engine) as connection:
        connection.exec_driver_sql(f"UPDATE bench_item SET version = version + 1 WHERE row < {BATCH}")
    return time.perf_counter() - started
