"""Progress on stderr: a bar where a person looks, a plain line every ten seconds where a log is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cli.session import current, interactive, say

Update = Callable[[int, int | None], None]
LINE_EVERY_S = 10.0
WORTH_SAYING_S = 2.0


@contextmanager
def progress(description: str, unit: str = "items", *, announce: bool = True) -> Iterator[Update]:
    """Yields `update(done, total)`. What took longer than two seconds says so when it is done, if `announce`."""
    started = time.monotonic()
    if current.quiet:
        yield lambda done, total: None
        return
    with _bar(description, unit) if interactive() else _lines(description, unit) as update:
        yield update
    taken_s = time.monotonic() - started
    if announce and taken_s >= WORTH_SAYING_S:
        say(f"{description}: done in {taken_s:.1f} s")


@contextmanager
def working(description: str) -> Iterator[None]:
    """For work that cannot say how far it is."""
    if current.quiet or not interactive():
        with progress(description, announce=False):
            yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


@contextmanager
def _bar(description: str, unit: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def _lines(description: str, unit: str) -> Iterator[Update]:
    started, at, stop = time.monotonic(), [0, 0], threading.Event()

    def run() -> None:
        while not stop.wait(LINE_EVERY_S):
            say(progress_line(description, unit, at[0], at[1] or None, time.monotonic() - started))

    def update(done: int, total: int | None) -> None:
        at[:] = done, total or 0

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield update
    finally:
        stop.set()
        thread.join()


def progress_line(description: str, unit: str, done: int, total: int | None, seconds: float) -> str:
    """One line of a log: how far, how fast, how long still."""
    if not total:
        return f"{description}: {seconds:.0f} s so far"
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
    return f"{description}: {done}/{total} {unit} ({done / total:.0%}), {rate:.1f}/s{left}"


@contextmanager
def shares() -> Iterator[Callable[[str, float], None]]:
    """Yields `bar(title, share 0..1)`: one bar a title, shown while it is not full; a line every ten seconds in a log."""
    if current.quiet:
        yield lambda title, share: None
        return
    if not interactive():
        yield _StageLines().update
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("   {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:

        def bar(title: str, share: float) -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, total=1.0)
            shown.update(tasks[title], completed=share, visible=share < 1.0)

        yield bar


class _StageLines:
    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def update(self, title: str, share: float) -> None:
        if time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._said_at = time.monotonic()
            say(f"{title}: {share:.0%}")
