"""Searches in windows of time, in turns without and with a refresh beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bench.result import Row, median


class Refresher(Protocol):
    """What refreshes beside the searches."""

    def go(self, seconds: float) -> None:
        """Refresh for so long; does not wait."""

    def wait(self) -> float:
        """Wait until it is done and can be seen; the items a second that were reached."""


@dataclass
class Window:
    """One window: seconds of each search, searches a second, seconds of processor time of this thread a search."""

    latencies: list[float]
    per_s: float
    processor_s: float

    @property
    def p99(self) -> float:
        return float(np.quantile(self.latencies, 0.99))


@dataclass
class Windows:
    """All windows of one subject; `rates`: items a second of each refreshed one."""

    static: list[Window] = field(default_factory=list)
    refreshed: list[Window] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def of(self, value: Callable[[Window], float]) -> tuple[float, float]:
        """Medians of the static and the refreshed windows."""
        return median([value(each) for each in self.static]), median([value(each) for each in self.refreshed])

    def ratio(self, value: Callable[[Window], float]) -> float:
        """Median of refreshed / static, window by window, so that a slow moment hits both."""
        pairs = zip(self.static, self.refreshed, strict=True)
        return median([value(refreshed) / value(static) for static, refreshed in pairs])


def search_for(seconds: float, search: Callable[[int], Any]) -> Window:
    """Search one after the other; `search` is given its number."""
    latencies: list[float] = []
    started, busy = time.perf_counter(), time.thread_time()
    now = started
    while now - started < seconds:
        search(len(latencies))
        latencies.append(time.perf_counter() - now)
        now += latencies[-1]
    return Window(latencies, len(latencies) / (now - started), (time.thread_time() - busy) / len(latencies))


def in_windows(search: Callable[[int], Any], refresher: Refresher, repeats: int, seconds: float) -> Windows:
    """Windows in turns; every second repeat begins with the refresh."""
    found = Windows()
    search_for(seconds / 4, search)  # warm

    def refreshed() -> None:
        refresher.go(seconds)
        found.refreshed.append(search_for(seconds, search))
        found.rates.append(refresher.wait())

    def static() -> None:
        found.static.append(search_for(seconds, search))

    for repeat in range(repeats):
        for window in (static, refreshed)[:: -1 if repeat % 2 else 1]:
            window()
    return found


class Upserts:
    """A peer's refresh: a thread that upserts batches, each at its moment, or as fast as the peer can."""

    def __init__(self, upsert: Callable[[int], Any], batch: int, rate_per_s: int) -> None:
        self._upsert = upsert
        self._batch = batch
        self._rate_per_s = rate_per_s
        self._number = 0
        self._thread: threading.Thread | None = None
        self._reached: list[float] = []

    def go(self, seconds: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(seconds,))
        self._thread.start()

    def _run(self, seconds: float) -> None:
        started, done = time.perf_counter(), 0
        while (now := time.perf_counter()) - started < seconds:
            due = started + done * self._batch / self._rate_per_s
            if due > now:
                time.sleep(min(due, started + seconds) - now)
                continue
            self._upsert(self._number)
            self._number, done = self._number + 1, done + 1
        self._reached.append(done * self._batch / max(seconds, time.perf_counter() - started))

    def wait(self) -> float:
        assert self._thread is not None
        self._thread.join()
        return self._reached[-1]


def rows_of(windows: Windows, subject: str, *, aimed: bool) -> list[Row]:
    """Searches a second, and the slowest of a hundred, beside the same subject's static state."""
    rate, repeats = median(windows.rates), len(windows.static)
    static, refreshed = windows.of(lambda window: window.per_s)
    p99_static, p99 = windows.of(lambda window: window.p99)
    of_qps, of_p99 = windows.ratio(lambda window: window.per_s), windows.ratio(lambda window: window.p99)
    name = f"{subject}, refresh of {rate:,.0f} items/s: median of {repeats}"
    return [
        Row(10, f"QPS, {name}", refreshed, "1/s", f"static, {static:.1f}/s", of_qps,
            ">= 0.97" if aimed else "-", of_qps >= 0.97 if aimed else None),
        Row(10, f"p99, {name}", p99 * 1e3, "ms", f"static, {p99_static * 1e3:.2f} ms", of_p99,
            "<= 1.1" if aimed else "-", of_p99 <= 1.1 if aimed else None),
    ]  # fmt: skip
