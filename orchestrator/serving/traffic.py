"""Which system answers a request while a rollout has a canary, and what is compared behind the answer.

An answer is wholly by one system. Which one is decided once a request: by its sticky key, or by chance. `Traffic` learns how a
rollout's traffic is divided out of the gallery's log, before the replica applies the entry: no request is answered by a new
model that it must not have, and the old system is held before the new one begins to serve.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.core.traffic import BUCKETS, NEW, OLD, WHOLE, Split, bucket
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import traffic as traffic_queries
from orchestrator.ledger.rows import ItemRow, LogEntry, RolloutRow
from orchestrator.serving.answers import Answer
from orchestrator.serving.old_system import OldSystem
from orchestrator.serving.replica import Replica
from orchestrator.serving.shadow import Compared, Shadow

# Of a rollout in these states the older one serves.
TAKEN_BACK = {
    RolloutState.CANCELLING, RolloutState.CANCELLED, RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK, RolloutState.FAILED,
}  # fmt: skip
# An old system that nobody can be sent to any more is let go within this time.
TIDY_S = 1.0

Found = TypeVar("Found", bound=Answer | Exception)
Ask = Callable[[Replica, int], Answer]
"""Searches a system for so many hits: the new system's replica, or the old one."""


@dataclass(frozen=True)
class Routed:
    """An answer and who gave it: old, new, or None where a gallery has one system only."""

    answer: Answer
    system: str | None


@dataclass(frozen=True)
class _Held:
    rollout: RolloutRow
    split: Split
    old: OldSystem | None


class Traffic:
    """Of all galleries of this process. Safe for many threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._replicas: dict[int, Replica] = {}
        self._held: dict[tuple[int, int | None], _Held] = {}
        self._newest: dict[int, int | None] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tidy, name="traffic", daemon=True)
        self.shadow = Shadow(context)
        self.answered = {OLD: 0, NEW: 0}

    def start(self) -> None:
        """Compare and tidy up in the background, until `close`."""
        self._thread.start()
        self.shadow.start()

    def attach(self, replica: Replica) -> None:
        """Answer for this replica from now on. Before it follows its log.

        Raises:
            ConflictError: a canary goes on, and a setting forbids to hold both systems.
        """
        self._replicas[replica.gallery.id] = replica
        replica.observer = partial(self._observe, replica)
        with snapshot(self._context.engine) as connection:
            self._observe(replica, connection, None)

    def answer(
        self, replica: Replica, ask: Ask, k: int, *,
        sticky: str | None = None, item: ItemRow | None = None, text: str | None = None,
    ) -> Routed:  # fmt: skip
        """Answer a request by the system that its key, or chance, says.

        Args:
            sticky: what always gets the same system; None: drawn for this request alone.
            item: the item that is searched by, where it is one.
            text: what was asked, for those who let samples keep it.
        """
        answers, system, held = self._routed(replica, lambda asked: [ask(asked, k)], sticky)
        [answer] = answers
        if held is not None and held.old is not None and random.random() < held.split.shadow:  # noqa: S311
            same, other = (held.old, replica) if system == OLD else (replica, held.old)
            ways = partial(ask, same), partial(ask, other)
            asked = Compared(held.rollout, system or NEW, answer, k, *ways, item, text)
            self.shadow.offer(asked, replica.gallery.modality)
        return Routed(answer, system)

    def answer_all(
        self,
        replica: Replica,
        ask: Callable[[Replica], list[Answer | Exception]],
        *,
        sticky: str | None = None,
    ) -> tuple[list[Answer | Exception], str | None]:
        """Answer the queries of one request, all by one system; which one it was, as in `Routed`. None is compared."""
        answers, system, _ = self._routed(replica, ask, sticky)
        return answers, system

    def _routed(
        self, replica: Replica, ask: Callable[[Replica], list[Found]], sticky: str | None
    ) -> tuple[list[Found], str | None, _Held | None]:
        drawn = random.randrange(BUCKETS)  # noqa: S311 - chance, no secret
        while True:
            rollout_id = replica.rollout_id
            held = self._held.get((replica.gallery.id, rollout_id))
            if held is None or held.old is None:
                answers, system = ask(replica), None
            else:
                place = drawn if sticky is None else bucket(sticky, held.rollout.id)
                system = held.split.system(place)
                answers = ask(held.old if system == OLD else replica)
            by_another = any(isinstance(each, Answer) and each.rollout_id != rollout_id for each in answers)
            if system != OLD and by_another:
                continue  # another rollout began to serve meanwhile: who may have its answers is another question
            if system is None:
                return answers, None, None
            self._count(system)
            return answers, system, held

    def canaries(self) -> dict[str, float]:
        """Gallery → percent of its traffic that the new system answers, where a canary goes on here."""
        held = list(self._held.items())
        return {
            self._replicas[gallery_id].gallery.name: each.split.canary
            for (gallery_id, rollout_id), each in held
            if self._replicas[gallery_id].rollout_id == rollout_id
        }

    def _count(self, system: str) -> None:
        with self._lock:
            self.answered[system] += 1

    def _observe(self, replica: Replica, connection: Connection, entry: LogEntry | None) -> bool:
        """Look at a log entry before the replica applies it; None: it loads everything anew. True: it should do that."""
        skip = False
        if entry is None:
            serving = rollout_queries.serving_now(connection, replica.gallery.id)
            self._hold(connection, replica, None if serving is None else serving.rollout_id)
        elif entry.kind in ("deployed", "traffic"):
            skip = self._hold(connection, replica, entry.rollout_id)
        for held in self._of(replica.gallery.id):
            if held.old is not None:
                if entry is None:
                    held.old.catch_up()
                else:
                    held.old.take(connection, entry)
        return skip

    def _of(self, gallery_id: int) -> list[_Held]:
        return [held for (of, _), held in list(self._held.items()) if of == gallery_id]

    def _hold(self, connection: Connection, replica: Replica, rollout_id: int | None) -> bool:
        """Know how a rollout's traffic is divided, and hold its old system while that is asked.

        True: it was taken back by now, and nobody may have its answers meanwhile.
        """
        key = replica.gallery.id, rollout_id
        self._newest[replica.gallery.id] = rollout_id
        rollout = None if rollout_id is None else rollout_queries.rollout_by_id(connection, rollout_id)
        if rollout is None:
            return False
        split = traffic_queries.split_of(connection, rollout.id) or WHOLE
        if split.over or rollout.kind != "upgrade":
            self._held.pop(key, None)
            return False
        if RolloutState(rollout.state) in TAKEN_BACK:
            return True
        if not replica.shard.whole:
            raise ConflictError(
                f"rollout {rollout.id} sends {split.canary:g} % of the traffic to the new system and compares "
                f"{100 * split.shadow:g} %, and shards answer by one system only. Start rollouts without canary and shadow, or "
                f"end this one's with `hotrefresh rollout promote {rollout.id}`."
            )
        if not self._context.settings.hold_old_system:
            raise ConflictError(
                f"rollout {rollout.id} sends {split.canary:g} % of the traffic to the new system, and hold_old_system = false "
                "lets this process hold one system only. Allow it (twice the memory), or end the canary with "
                f"`hotrefresh rollout promote {rollout.id}`."
            )
        before = self._held.get(key)
        old = OldSystem(self._context, replica, rollout) if before is None else before.old
        self._held[key] = _Held(rollout, split, old)
        return False

    def _tidy(self) -> None:
        while not self._stop.wait(TIDY_S):
            self.tidy()

    def tidy(self) -> None:
        """Let go of old systems whose rollout serves no more and will not serve again."""
        for gallery_id, rollout_id in list(self._held):
            serves = self._replicas[gallery_id].rollout_id
            if rollout_id not in (serves, self._newest.get(gallery_id)):
                self._held.pop((gallery_id, rollout_id), None)

    def close(self) -> None:
        """Write what was compared, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self.shadow.close()
