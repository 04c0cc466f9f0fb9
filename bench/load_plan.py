"""Row 2: store a plan as chunks of 65,536 ranks, beside a binary COPY of one row an item."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.commit_batch import new_rollout
from bench.result import Row, in_turns, median
from bench.scratch import register_network, scratch_context
from orchestrator.core.plan import U32, from_chunks, invert, to_chunks
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts
from orchestrator.settings import Settings

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
PIECE = 1 << 20


def run(
    settings: Settings | None = None, *, repeats: int = 5, quick: bool = False, seed: int = 0
) -> list[Row]:
    """Medians of `repeats`, in turns, each into an empty table; bytes an item from the tables' size with their indexes.

    The peer is as lean as rows can be (no rollout's id, the bytes made beforehand); cutting the chunks is timed.
    """
    n = 500_000 if quick else 2_000_000
    rank_of = invert(np.random.default_rng(seed).permutation(n).astype(np.uint32))
    rows = HEADER + as_rows(rank_of).tobytes() + TRAILER
    with scratch_context(settings) as context:
        model = register_network(context, "bench", "convnet", {}, 0)
        rollout_id = new_rollout(context, model.id, n)
        with transaction(context.engine) as connection:
            connection.exec_driver_sql(
                "CREATE TABLE bench_rank (row bigint PRIMARY KEY, rank bigint NOT NULL)"
            )

        def empty(_: str) -> None:
            with transaction(context.engine) as connection:
                connection.exec_driver_sql("TRUNCATE plan_chunk, bench_rank")

        def chunks() -> None:
            with transaction(context.engine) as connection:
                rollouts.copy_plan(connection, rollout_id, to_chunks(rank_of))

        def per_item() -> None:
            with transaction(context.engine) as connection:
                cursor: Any = connection.connection.cursor()
                with cursor.copy("COPY bench_rank FROM STDIN (FORMAT binary)") as copy:
                    for at in range(0, len(rows), PIECE):
                        copy.write(rows[at : at + PIECE])

        taken = in_turns({"chunks": chunks, "per_item": per_item}, repeats, before=empty)
        empty("both")
        chunks()
        per_item()
        with transaction(context.engine) as connection:
            assert (from_chunks(rollouts.plan_chunks(connection, rollout_id)) == rank_of).all()
            sizes = [
                connection.exec_driver_sql(f"SELECT pg_total_relation_size('{table}')").scalar_one() / n
                for table in ("plan_chunk", "bench_rank")
            ]
    return _rows({name: median(values) for name, values in taken.items()}, sizes, n, repeats, seed)


def _rows(p50: dict[str, float], sizes: list[float], n: int, repeats: int, seed: int) -> list[Row]:
    faster = p50["per_item"] / p50["chunks"]
    return [
        Row(2, f"store a plan of {n:,} ranks, cut into chunks: median of {repeats} (seed {seed})", p50["chunks"], "s",
            f"binary COPY of a row an item, {p50['per_item']:.2f} s", faster, ">= 60", faster >= 60),
        Row(2, f"bytes an item of {n:,}, with indexes", sizes[0], "B", f"a row an item, {sizes[1]:.1f} B",
            sizes[1] / sizes[0], "<= 4.25 B", sizes[0] <= 4.25),
    ]  # fmt: skip


def as_rows(rank_of: U32) -> np.ndarray:
    """PostgreSQL's binary COPY rows (row, rank), both bigint: (n,) records of big-endian fields."""
    layout = [("fields", ">i2"), ("row_bytes", ">i4"), ("row", ">i8"), ("rank_bytes", ">i4"), ("rank", ">i8")]
    rows = np.zeros(len(rank_of), dtype=layout)
    rows["fields"], rows["row_bytes"], rows["rank_bytes"] = 2, 8, 8
    rows["row"], rows["rank"] = np.arange(len(rank_of)), rank_of
    return rows
