"""How often items are retrieved: what a query log says, and what `hotrefresh serve` counts by itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.plan import CHUNK
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import demand as demand_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.service.names import find_gallery

U32 = npt.NDArray[np.uint32]
MOST = 2**32 - 1
# Keys that are looked up by one statement.
KEYS_AT_ONCE = 20_000


@dataclass(frozen=True)
class DemandImported:
    """What an import took: retrievals of so many items, and how many lines named none that the gallery has."""

    gallery: str
    items: int
    retrievals: int
    unknown: int


@dataclass(frozen=True)
class Demand:
    """What is known of a gallery.

    Attributes:
        items: how many were ever retrieved.
        most_retrieved: key, count and share of retrievals of the first ones.
    """

    gallery: str
    retrievals: int
    items: int
    since: datetime | None
    updated_at: datetime | None
    most_retrieved: tuple[dict[str, Any], ...]


def add_counts(connection: Connection, gallery_id: int, counts: dict[int, int]) -> None:
    """Add retrievals by row, in whole chunks; a count stays at 4,294,967,295."""
    rows = np.fromiter(counts.keys(), np.int64, len(counts))
    added = np.fromiter(counts.values(), np.uint64, len(counts))
    before = demand_queries.lock_demand(connection, gallery_id)
    numbers = np.unique(rows // CHUNK).tolist()
    held = demand_queries.read_chunks(connection, gallery_id, numbers)
    for no in numbers:
        inside = rows // CHUNK == no
        places = rows[inside] - no * CHUNK
        old = np.frombuffer(held.get(no, b""), "<u4")
        sums = np.zeros(max(len(old), int(places.max()) + 1), np.uint64)
        sums[: len(old)] = old
        sums[places] += added[inside]
        chunk = np.minimum(sums, MOST).astype("<u4").tobytes()
        demand_queries.write_chunk(connection, gallery_id, no, chunk)
    demand_queries.set_total(connection, gallery_id, before.retrievals + int(added.sum()))


def read_counts(connection: Connection, gallery_id: int, n: int) -> U32:
    """How often each of the first `n` rows was retrieved: (n,) uint32; zeros where nothing was counted."""
    counts = np.zeros(n, np.uint32)
    for no, chunk in demand_queries.read_chunks(connection, gallery_id).items():
        part = counts[no * CHUNK : (no + 1) * CHUNK]
        found = np.frombuffer(chunk, "<u4")[: len(part)]
        part[: len(found)] = found
    return counts


def require_demand(connection: Connection, gallery_id: int, gallery: str) -> None:
    """Raises ConflictError where nothing was retrieved yet, saying what to do."""
    row = demand_queries.demand_of_gallery(connection, gallery_id)
    if row is None or row.retrievals == 0:
        raise ConflictError(
            f"nobody knows which items of gallery {gallery!r} are retrieved: `hotrefresh serve` counts them, or give a log "
            f"with `hotrefresh gallery demand import {gallery} FILE`. Or choose another order, such as entropy."
        )


def import_demand(context: Context, gallery_name: str, path: Path) -> DemandImported:
    """Add a query log, CSV or Parquet with a column item (a key) and optionally count; lines of one item add up.

    Raises:
        UsageError: the file cannot be read, lacks the column, holds a count that is none, or no item of the gallery.
    """
    from models.datasets.manifest_file import read_table

    totals: dict[str, int] = {}
    for number, line in enumerate(read_table(path, "item"), 1):
        key = str(line.get("item") or "").strip()
        totals[key] = totals.get(key, 0) + _count(line.get("count"), path, number)
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        keys = list(totals)
        counts: dict[int, int] = {}
        for at in range(0, len(keys), KEYS_AT_ONCE):
            found = gallery_queries.rows_of_keys(connection, gallery.id, keys[at : at + KEYS_AT_ONCE])
            counts |= {row: totals[key] for key, row in found.items() if totals[key]}
        if not counts:
            raise UsageError(
                f"{path} names no item of gallery {gallery.name!r} ({len(totals)} others); its column item holds keys as "
                f"`hotrefresh ledger versions {gallery.name} --items` lists them."
            )
        add_counts(connection, gallery.id, counts)
        done = DemandImported(gallery.name, len(counts), sum(counts.values()), len(keys) - len(counts))
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="demand.imported",
            target=gallery.name,
            after={"items": done.items, "retrievals": done.retrievals},
        )
    return done


def _count(value: Any, path: Path, number: int) -> int:
    """A line's count; 1 where the log has none."""
    if value is None or str(value).strip() == "":
        return 1
    try:
        count = int(str(value).strip())
    except ValueError:
        count = -1
    if not 0 <= count <= MOST:
        raise UsageError(
            f"{path}, line {number}: count is {str(value)[:80]!r}; it must be a whole number from 0 to {MOST}. "
            "Nothing was imported."
        )
    return count


def show_demand(context: Context, gallery_name: str, first: int = 10) -> Demand:
    """What is known of a gallery, with the `first` items that are retrieved most."""
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        row = demand_queries.demand_of_gallery(connection, gallery.id)
        counts = read_counts(connection, gallery.id, gallery.n_items)
        most = np.argsort(-counts.astype(np.int64), kind="stable")[:first]
        most = most[counts[most] > 0]
        items = {i.row: i.key for i in gallery_queries.items_of_rows(connection, gallery.id, most.tolist())}
    total = row.retrievals if row else 0
    return Demand(
        gallery=gallery.name,
        retrievals=total,
        items=int(np.count_nonzero(counts)),
        since=row.since if row else None,
        updated_at=row.updated_at if row else None,
        most_retrieved=tuple(
            {"key": items[int(r)], "count": int(counts[r]), "share": int(counts[r]) / total}
            for r in most
            if int(r) in items
        ),
    )


def decay_demand(context: Context, gallery_name: str, keep: float) -> int:
    """Let all counts shrink to `keep` of what they are, rounded down, so that what is asked for now counts more.

    Args:
        keep: 0 to 1; 0 forgets everything.

    Returns the retrievals that are left.
    """
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        before = demand_queries.lock_demand(connection, gallery.id)
        left = 0
        if keep == 0:
            demand_queries.forget(connection, gallery.id)
        else:
            for no, chunk in demand_queries.read_chunks(connection, gallery.id).items():
                counts = np.floor(np.frombuffer(chunk, "<u4") * keep).astype("<u4")
                left += int(counts.sum(dtype=np.uint64))
                demand_queries.write_chunk(connection, gallery.id, no, counts.tobytes())
            demand_queries.set_total(connection, gallery.id, left)
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="demand.decayed",
            target=gallery.name,
            before={"retrievals": before.retrievals},
            after={"retrievals": left, "keep": keep},
        )
    return left
