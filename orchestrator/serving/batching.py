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
    """

    def __init__(self, encode: Encode, most: int = 64, wait_s: float = 0.0) -> None:
        self._encode_all = encode
        self._most = most
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._queue: list[_Waiting] = []
        self._busy = False

    def encode(self, prepared: Sequence[Any]) -> Vectors:
        """(n, dim) float32 of n prepared queries, whatever becomes of those beside them.

        Raises whatever the encoder raises for these queries alone.
        """
        if self._most == 1:
            return self._encode(prepared)
        mine = _Waiting(prepared)
        with self._lock:
            self._queue.append(mine)
            leads, self._busy = not self._busy, True
        if not leads:
            mine.woken.wait()
        if not mine.is_answered:  # the encoder is ours
            self._lead()
        if mine.error is not None:
            raise mine.error
        assert mine.vectors is not None, "who leads takes the oldest of the queue, itself among them"
        return mine.vectors

    def _encode(self, prepared: Sequence[Any]) -> Vectors:
        vectors = self._encode_all(prepared)
        if len(vectors) != len(
            prepared
        ):  # code of a user, perhaps: nobody gets the vector of another's query
            raise ValueError(f"the encoder made {len(vectors)} vectors of {len(prepared)} queries")
        return vectors

    def _lead(self) -> None:
        """Encode one batch, oldest first, and hand the encoder over. The leader's own queries are the oldest."""
        if self._wait_s > 0:
            self._wait()
        with self._lock:
            batch = self._take()
        try:
            self._answer(batch)
        finally:
            with self._lock:
                for each in batch[1:]:
                    each.woken.set()
                if self._queue:
                    self._queue[0].woken.set()
                else:
                    self._busy = False

    def _wait(self) -> None:
        """Until the batch is full, or the time is over."""
        until = time.monotonic() + self._wait_s
        while time.monotonic() < until:
            with self._lock:
                if sum(len(each.prepared) for each in self._queue) >= self._most:
                    return
            time.sleep(min(0.001, self._wait_s))

    def _take(self) -> list[_Waiting]:
        """The oldest of the queue, at least one of them, and as many as fit into a batch."""
        taken, count = 1, len(self._queue[0].prepared)
        while taken < len(self._queue) and count + len(self._queue[taken].prepared) <= self._most:
            count += len(self._queue[taken].prepared)
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
