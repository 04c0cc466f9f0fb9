"""Queries that wait for the encoder at the same time are encoded together.

A batch is formed of what came while the encoder was busy: one query alone is encoded at once, by the thread that asks,
and of many each pays its share of one call. No thread of its own: whoever finds the encoder free encodes, and when done
hands the encoder to one of those that wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[Any]], Vectors]


class _Waiting:
    """Some prepared queries of one caller, and what became of them."""

    def __init__(self, prepared: Sequence[Any]) -> None:
        self.prepared = list(prepared)
        self.woken = threading.Event()
        self.vectors: Vectors | None = None
        self.error: BaseException | None = None

    @property
    def is_answered(self) -> bool:
        return self.vectors is not None or self.error is not None


class QueryBatcher:
    """Batches the calls of one encoder. Safe for many threads.

    Args:
        encode: prepared queries → (n, dim) float32, in their order.
        most: queries in a batch; 1: every caller encodes alone, at the same time as the others.
        wait_s: how long a batch waits for company once the encoder is free; 0: not at all.
        at_once: batches encoded at the same time: as many as there are processors for, each with the encoder's threads.
    """

    def __init__(self, encode: Encode, most: int = 64, wait_s: float = 0.0, at_once: int = 1) -> None:
        self._encode_all = encode
        self._most = most
        self._wait_s = wait_s
        self._at_once = at_once
        self._lock = threading.Lock()
        # Nobody waits in it while fewer than `at_once` encode.
        self._queue: list[_Waiting] = []
        self._encoding = 0

    def encode(self, prepared: Sequence[Any]) -> Vectors:
        """(n, dim) float32 of n prepared queries, whatever becomes of those beside them.

        Raises whatever the encoder raises for these queries alone.
        """
        if self._most == 1:
            return self._encode(prepared)
        mine = _Waiting(prepared)
        with self._lock:
            leads = self._encoding < self._at_once
            if leads:
                self._encoding += 1
            else:
                self._queue.append(mine)
        if not leads:
            mine.woken.wait()
        if not mine.is_answered:  # the encoder is ours
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        assert mine.vectors is not None, "who leads answers himself first"
        return mine.vectors

    def _encode(self, prepared: Sequence[Any]) -> Vectors:
        vectors = self._encode_all(prepared)
        if len(vectors) != len(
            prepared
        ):  # code of a user, perhaps: nobody gets the vector of another's query
            raise ValueError(f"the encoder made {len(vectors)} vectors of {len(prepared)} queries")
        return vectors

    def _lead(self, mine: _Waiting) -> None:
        """Encode one's own queries with the oldest that wait, and hand the encoder over to the next of them."""
        if self._wait_s > 0:
            self._wait(len(mine.prepared))
        with self._lock:
            batch = [mine, *self._take(self._most - len(mine.prepared))]
        try:
            self._answer(batch)
        finally:
            with self._lock:
                for each in batch[1:]:
                    each.woken.set()
                if self._queue:
                    self._queue.pop(0).woken.set()
                else:
                    self._encoding -= 1

    def _wait(self, count: int) -> None:
        """Until the batch is full, `count` of whose queries are there, or the time is over."""
        until = time.monotonic() + self._wait_s
        while time.monotonic() < until:
            with self._lock:
                if count + sum(len(each.prepared) for each in self._queue) >= self._most:
                    return
            time.sleep(min(0.001, self._wait_s))

    def _take(self, room: int) -> list[_Waiting]:
        """The oldest of the queue, as many as there is room for."""
        taken = 0
        while taken < len(self._queue) and len(self._queue[taken].prepared) <= room:
            room -= len(self._queue[taken].prepared)
            taken += 1
        batch, self._queue = self._queue[:taken], self._queue[taken:]
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """Encode a batch in one call; where that fails, each caller's queries alone, so that only the culprit's fail."""
        if len(batch) > 1:
            try:
                vectors = self._encode([one for each in batch for one in each.prepared])
            except BaseException:  # noqa: BLE001 - asked again one by one, and raised where it belongs
                vectors = None
            if vectors is not None:
                at = 0
                for each in batch:
                    each.vectors = vectors[at : at + len(each.prepared)]
                    at += len(each.prepared)
                return
        for each in batch:
            try:
                each.vectors = self._encode(each.prepared)
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                each.error = error
