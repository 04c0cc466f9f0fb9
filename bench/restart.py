"""A replica's start, fresh and from a snapshot with some of the log behind it; and what searches wait while one is written."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from bench.core import pin_threads
from bench.refreshed import BATCH, NEW, RATE_PER_S, Writer, begin, load, register, writer
from bench.result import Row, document, in_turns, median, quartiles
from bench.scratch import another_context, database, scratch_context
from orchestrator.api.replicas import ServedReplica
from orchestrator.context import Context
from orchestrator.ledger.rows import GalleryRow
from orchestrator.settings import Settings, load_settings

ROW = 10
N, DIM = 1_000_000, 64
BEFORE, BEHIND = 200, 20
"""Batches that are refreshed before the snapshot, and batches behind it when the replica starts again."""
PROBE_S = 0.0005


def run(
    settings: Settings | None = None, *, repeats: int = 5, quick: bool = False, n: int | None = None
) -> dict[str, Any]:
    """Measure in a database and a folder of their own; `quick`: 131,072 items and two repeats, not to quote."""
    pin_threads()
    n = n or (131_072 if quick else N)
    repeats = min(repeats, 2) if quick else repeats
    with scratch_context(settings or load_settings()) as context:
        described = database(context)
        register(context, DIM)
        gallery = load(context, n, DIM)
        _attributes(context)
        rows = _measure(context, gallery, repeats, n, 4 if quick else 1)
    return document("restart", rows, postgresql=described, repeats=repeats, quick=quick, seed=0)


def _attributes(context: Context) -> None:
    """Items have a label, and one more attribute: a start reads both."""
    with context.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE item SET label = 'class ' || mod(row, 1000), "
            "attributes = jsonb_build_object('shop', 'shop ' || mod(row, 100))"
        )


def _measure(context: Context, gallery: GalleryRow, repeats: int, n: int, part: int) -> list[Row]:
    rollout = begin(context, gallery)
    with writer(context, rollout) as written:
        _refresh(written, BEFORE // part)
        with ExitStack() as stack:
            replica = stack.enter_context(
                ServedReplica(stack.enter_context(another_context(context)), gallery)
            )
            assert replica.model.name == NEW
            replica.follow()
            pauses = _pauses(replica, written, repeats)
            replica.unfollow()
            replica.catch_up()
            replica._restart.write(replica.standing)
        size = sum(
            path.stat().st_size for path in (context.settings.data_dir / "replicas").rglob("*.snapshot")
        )
        _refresh(written, BEHIND)
        starts = _starts(context, gallery, repeats)
    fresh, again = starts["fresh"], starts["snapshot"]
    what = f"{n:,} × {DIM} float32, label and one attribute, embedded ledger, a fifth through a refresh"
    return [
        Row(ROW, f"a replica is ready, from its snapshot and {BEHIND} batches of {BATCH:,} of the log behind it, {what}: "
            f"median of {repeats}, {quartiles(again)}", median(again), "s",
            f"loaded fresh {median(fresh):.2f} s, {quartiles(fresh)}", median(fresh) / median(again)),
        Row(ROW, f"bytes of the snapshot, {n:,} × {DIM}", size / 1e6, "MB", f"the vectors, {n * DIM * 4 / 1e6:.0f} MB",
            size / (n * DIM * 4)),
        *_rows_of(pauses, n),
    ]  # fmt: skip


def _refresh(written: Writer, batches: int) -> None:
    written.go(batches)
    written.wait()


def _starts(context: Context, gallery: GalleryRow, repeats: int) -> dict[str, list[float]]:
    """Seconds from `ServedReplica(...)` until it can be searched, the models loaded anew each time."""

    def start(every_s: float) -> None:
        with another_context(context) as own:
            settings = own.settings.model_copy(update={"replica_snapshot_s": every_s})
            replica = ServedReplica(replace(own, settings=settings), gallery)
            replica.search(["query 7"])
            assert (replica.snapshot_seq is not None) == (every_s > 0)
            replica.close()

    works = {"fresh": lambda: start(0), "snapshot": lambda: start(600)}
    return in_turns(works, repeats, lambda _: gc.collect())


class Probe:
    """How long a search waits for its turn: a thread that takes the lock as a search does, every half millisecond."""

    def __init__(self, replica: ServedReplica) -> None:
        self._lock = replica.standing.lock
        self._over = threading.Event()
        self.waits: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(PROBE_S):
            asked = time.perf_counter()
            with self._lock.read():  # type: ignore[attr-defined]
                self.waits.append(time.perf_counter() - asked)

    def during(self, work: Callable[[], Any]) -> tuple[list[float], float]:
        """The waits beside some work, and how long the work took."""
        self._thread.start()
        started = time.perf_counter()
        work()
        taken = time.perf_counter() - started
        self._over.set()
        self._thread.join()
        return self.waits, taken


def _pauses(
    replica: ServedReplica, written: Writer, repeats: int
) -> dict[str, list[tuple[list[float], float]]]:
    """Waits beside a refresh of 10,000 items a second, with and without a snapshot being written."""
    found: dict[str, list[tuple[list[float], float]]] = {"without": [], "writing": []}
    for _ in range(repeats):
        written.go(4 * RATE_PER_S // BATCH // 2)
        found["writing"].append(Probe(replica).during(lambda: replica._restart.write(replica.standing)))
        taken = found["writing"][-1][1]
        found["without"].append(Probe(replica).during(lambda: time.sleep(taken)))  # noqa: B023 - called at once
        written.wait()
    return found


def _rows_of(pauses: dict[str, list[tuple[list[float], float]]], n: int) -> list[Row]:
    waits = {name: np.concatenate([each for each, _ in found]) * 1e3 for name, found in pauses.items()}
    taken = [seconds for _, seconds in pauses["writing"]]
    rows = [
        Row(ROW, f"a snapshot is written, {n:,} × {DIM}, beside a refresh of {RATE_PER_S:,} items/s: median of {len(taken)}, "
            f"{quartiles(taken)}", median(taken), "s", "-")
    ]  # fmt: skip
    for name, of in (("p99", lambda x: np.quantile(x, 0.99)), ("longest", np.max)):
        writing, without = (float(of(waits[each])) for each in ("writing", "without"))
        rows.append(
            Row(ROW, f"what a search waits for the lock while a snapshot is written: {name} of {len(waits['writing']):,}",
                writing, "ms", f"the refresh alone {without:.3f} ms", writing / without if without else None)
        )  # fmt: skip
    return rows
