"""Row 2: store a plan as rank chunks beside a binary COPY of one row an item."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.commit_batch import _rollout as new_rollout
from bench.scratch import in_turns, medians, register_network, row, scratch_context
from orchestrator.core.plan import invert, to_chunks
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


def run(repeats: int = 5, n: int = 2_000_000, seed: int = 0) -> list[dict[str, Any]]:
    """Medians of `repeats`, in turns; bytes an item from the tables' size on disk."""
    rank_of = invert(np.random.default_rng(seed).permutation(n).astype(np.uint32))
    with scratch_context() as context:
        model = register_network(context, "bench", 0)
        rollout_id = new_rollout(context, model.id, n)
        rows = HEADER + _as_rows(rank_of, rollout_id).tobytes() + TRAILER
        with transaction(context.engine) as connection:
            connection.exec_driver_sql(
                "CREATE TABLE bench_rank (rollout bigint, row bigint, rank bigint, PRIMARY KEY (rollout, row))"
            )

        def chunks() -> None:
            with transaction(context.engine) as connection:
                connection.exec_driver_sql("TRUNCATE plan_chunk")
                rollouts.copy_plan(connection, rollout_id, to_chunks(rank_of))

        def per_item() -> None:
            with transaction(context.engine) as connection:
                connection.exec_driver_sql("TRUNCATE bench_rank")
                cursor = connection.connection.cursor()
                with cursor.copy("COPY bench_rank FROM STDIN (FORMAT binary)") as copy:  # type: ignore[attr-defined]
                    for at in range(0, len(rows), 1 << 20):
                        copy.write(rows[at : at + (1 << 20)])

        taken = medians(in_turns({"chunks": chunks, "per_item": per_item}, repeats))
        with transaction(context.engine) as connection:
            size = {
                table: connection.exec_driver_sql(f"SELECT pg_total_relation_size('{table}')").scalar_one()
                / n
                for table in ("plan_chunk", "bench_rank")
            }
    ratio = taken["per_item"] / taken["chunks"]
    return [
        row(2, f"load a plan of {n:,} ranks (seed {seed}), chunking included", taken["chunks"], "s",
            f"binary COPY of a row an item, {taken['per_item']:.2f} s", ratio, ">= 60", ratio >= 60),
        row(2, "bytes an item", size["plan_chunk"], "B", f"a row an item, {size['bench_rank']:.0f} B",
            size["bench_rank"] / size["plan_chunk"], "<= 4.25 B", size["plan_chunk"] <= 4.25),
    ]  # fmt: skip


def _as_rows(rank_of: np.ndarray, rollout_id: int) -> np.ndarray:
    """PostgreSQL's binary COPY rows (rollout, row, rank), big-endian."""
    layout = [("fields", ">i2")] + [
        (f"{part}{name}", kind) for name in "abc" for part, kind in (("len_", ">i4"), ("val_", ">i8"))
    ]
    rows = np.zeros(len(rank_of), dtype=layout)
    rows["fields"] = 3
    for name, values in zip("abc", (rollout_id, np.arange(len(rank_of)), rank_of), strict=True):
        rows[f"len_{name}"], rows[f"val_{name}"] = 8, values
    return rows
