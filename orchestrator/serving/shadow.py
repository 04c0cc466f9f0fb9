"""Asking the other system too, behind an answer: in one thread, never in its way, and what comes of it as roll-ups.

What waits is bounded; beyond that a query is dropped and counted. A process that dies loses what it has not written, at most
`FLUSH_S` seconds of it. Nothing of what was asked is kept, unless the setting `shadow_keep_texts` says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from orchestrator.context import Context
from orchestrator.core.churn import shared_rows
from orchestrator.core.traffic import NEW, OLD
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import traffic as traffic_queries
from orchestrator.ledger.queries.traffic import ShadowCounts, ShadowSample
from orchestrator.ledger.rows import ItemRow, RolloutRow
from orchestrator.serving.answers import Answer, Hit

FLUSH_S = 5.0
# Queries that wait for the other system; decoded pictures are large.
WAITING = {"text": 64, "image": 8, "video": 8}
# Samples a rollout in the ledger, and new ones between two writes of a process.
MOST_SAMPLES, MOST_NEW_SAMPLES = 200, 20
STAGES = 20


@dataclass(frozen=True)
class Compared:
    """A query that one system has answered, and how to ask the same and the other for more hits; see `Traffic.answer`."""

    rollout: RolloutRow
    system: str
    answer: Answer
    k: int
    same: Callable[[int], Answer]
    other: Callable[[int], Answer]
    item: ItemRow | None
    text: str | None


@dataclass
class _Sums:
    shared: np.ndarray
    n: int = 0
    label: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("both_right", "negative_flips", "positive_flips", "both_wrong"), 0
        )
    )
    dropped: int = 0
    failed: int = 0
    last_seq: int = 0


class Shadow:
    """The comparisons of this process. Safe for many threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: deque[Compared] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._stopped = False
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._samples: dict[int, list[ShadowSample]] = {}
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._writer = threading.Thread(target=self._write, name="shadow-writer", daemon=True)
        self.counts = {"compared": 0, "dropped": 0, "failed": 0}

    def start(self) -> None:
        """Compare, and write every few seconds, until `close`."""
        self._thread.start()
        self._writer.start()

    def offer(self, asked: Compared, modality: str) -> None:
        """Compare this query when there is time; dropped and counted when too many wait. Never waits, never raises."""
        with self._changed:
            if len(self._waiting) < WAITING[modality]:
                self._waiting.append(asked)
                self._changed.notify_all()
                return
            self.counts["dropped"] += 1
            self._of(asked, asked.answer.coverage_ratio if asked.system == NEW else 0.0).dropped += 1

    def settle(self, seconds: float = 10.0) -> bool:
        """Wait until nothing waits and nothing is compared; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                asked, self._busy = self._waiting.popleft(), True
            try:
                self.compare(asked)
            except Exception:  # noqa: BLE001 - whatever keeps the other system from answering: it is counted
                with self._changed:
                    self.counts["failed"] += 1
                    self._of(asked, asked.answer.coverage_ratio if asked.system == NEW else 0.0).failed += 1
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def compare(self, asked: Compared) -> None:
        """Ask the other system, and add what it says to the sums."""
        depth = int(asked.rollout.config.get("churn_k", 10))
        answer = asked.answer if asked.k >= depth else asked.same(depth)
        other = asked.other(max(asked.k, depth))
        by = {asked.system: answer, OLD if asked.system == NEW else NEW: other}
        old, new = by[OLD], by[NEW]
        if new.rollout_id != asked.rollout.id:
            raise LookupError("another rollout serves by now")
        shared = shared_rows(*_lists(old.hits, new.hits, depth))[0]
        with self._changed:
            self.counts["compared"] += 1
            sums = self._of(asked, new.coverage_ratio)
            sums.n += 1
            sums.shared += shared
            sums.last_seq = max(sums.last_seq, new.seq)
            if asked.item is not None and asked.item.label is not None:
                sums.label[_outcome(asked.item, old, new)] += 1
            if _rows(old, depth) != _rows(new, depth):
                self._keep(asked, old, new, depth)

    def _of(self, asked: Compared, coverage: float) -> _Sums:
        key = asked.rollout.id, int(coverage * STAGES)
        if key not in self._sums:
            depth = int(asked.rollout.config.get("churn_k", 10))
            self._sums[key] = _Sums(np.zeros(depth, np.int64))
        return self._sums[key]

    def _keep(self, asked: Compared, old: Answer, new: Answer, depth: int) -> None:
        kept = self._samples.setdefault(asked.rollout.id, [])
        if len(kept) >= MOST_NEW_SAMPLES:
            return
        text = asked.text if self._context.settings.shadow_keep_texts else None
        lists = [(_rows(each, depth), _scores(each, depth)) for each in (old, new)]
        kept.append(
            ShadowSample(
                datetime.now(UTC), asked.system, new.seq, new.coverage_ratio, *lists[0], *lists[1], text
            )
        )

    def _write(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, FLUSH_S):
                    return
            self._try()

    def _try(self) -> None:
        with suppress(Exception):  # kept, and tried again in a moment; searches go on
            self.flush()

    def flush(self) -> None:
        """Write what was compared since the last time, a transaction a rollout; what cannot be written is kept.

        Raises:
            HotrefreshError: the ledger is away, or refused.
        """
        with self._changed:
            rollouts = sorted({rollout_id for rollout_id, _ in self._sums})
        for rollout_id in rollouts:
            with self._changed:
                taken = {key: self._sums.pop(key) for key in list(self._sums) if key[0] == rollout_id}
                samples = self._samples.pop(rollout_id, [])
            try:
                with transaction(self._context.engine) as connection:
                    counts = [_row(stage, sums) for (_, stage), sums in taken.items()]
                    traffic_queries.add_shadow(connection, rollout_id, counts)
                    traffic_queries.add_samples(connection, rollout_id, samples, MOST_SAMPLES)
            except BaseException:
                self._give_back(rollout_id, taken, samples)
                raise

    def _give_back(
        self, rollout_id: int, taken: dict[tuple[int, int], _Sums], samples: list[ShadowSample]
    ) -> None:
        with self._changed:
            for key, sums in taken.items():
                now = self._sums.setdefault(key, _Sums(np.zeros_like(sums.shared)))
                now.shared += sums.shared
                now.last_seq = max(now.last_seq, sums.last_seq)
                for name in ("n", "dropped", "failed"):
                    setattr(now, name, getattr(now, name) + getattr(sums, name))
                for name, count in sums.label.items():
                    now.label[name] += count
            self._samples[rollout_id] = (samples + self._samples.get(rollout_id, []))[:MOST_NEW_SAMPLES]

    def close(self) -> None:
        """Drop what waits, write what was compared, and end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in (self._thread, self._writer):
            if thread.is_alive():
                thread.join(timeout=10)
        self._try()


def _row(stage: int, sums: _Sums) -> ShadowCounts:
    return ShadowCounts(
        stage, sums.n, tuple(map(int, sums.shared)), sum(sums.label.values()), **sums.label,
        dropped=sums.dropped, failed=sums.failed, last_seq=sums.last_seq,
    )  # fmt: skip


def _rows(answer: Answer, depth: int) -> tuple[int, ...]:
    return tuple(hit.row for hit in answer.hits[:depth])


def _scores(answer: Answer, depth: int) -> tuple[float, ...]:
    return tuple(hit.score for hit in answer.hits[:depth])


def _lists(old: tuple[Hit, ...], new: tuple[Hit, ...], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Both answers as (1, depth) int64. Where one is shorter its places differ; where both end, nothing is missing."""
    longer = min(depth, max(len(old), len(new)))
    ends = [-(place + 1) for place in range(longer, depth)]
    lists = []
    for hits, sign in ((old, 1), (new, 2)):
        rows = [hit.row for hit in hits[:depth]]
        rows += [-(sign * 1_000_000 + place) for place in range(len(rows), longer)]
        lists.append(np.array([rows + ends], np.int64))
    return lists[0], lists[1]


def _outcome(item: ItemRow, old: Answer, new: Answer) -> str:
    """Whether the first answer, besides the item itself, has the label of the item asked for, in either system."""
    old_right, new_right = (
        next((hit.label for hit in answer.hits if hit.row != item.row), None) == item.label
        for answer in (old, new)
    )
    if old_right:
        return "both_right" if new_right else "negative_flips"
    return "positive_flips" if new_right else "both_wrong"
