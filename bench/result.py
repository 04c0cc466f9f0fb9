"""What a benchmark returns: rows beside their limits, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
PACKAGES = ("torch", "numpy", "faiss-cpu", "psycopg", "sqlalchemy", "pillow")


@dataclass(frozen=True)
class Row:
    """One measurement beside its limit.

    Attributes:
        row: the number of the target.
        name: what was measured, with its sizes, seed and number of samples.
        value: in `unit`, a median.
        against: the limit or peer of the same run, with its figure.
        ratio: of the two; None where there is nothing to divide by.
        target: as a comparison; "-" for a row that only explains another one.
        holds: None where there is no target, or where this machine cannot tell.
    """

    row: int
    name: str
    value: float
    unit: str
    against: str
    ratio: float | None = None
    target: str = "-"
    holds: bool | None = None


def document(bench: str, rows: Iterable[Row], **host: Any) -> dict[str, Any]:
    """The one document of a run; `host` adds to the description of the machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "bench": bench,
        "host": {**machine(), **host},
        "rows": [asdict(row) for row in rows],
    }


def machine() -> dict[str, Any]:
    """The processor, the system, the versions, and how busy the machine is with other things."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": 1,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(
    works: Mapping[str, Callable[[], Any]], repeats: int, before: Callable[[str], Any] | None = None
) -> dict[str, list[float]]:
    """Seconds of each work, one after the other in every repeat, so that a slow moment hits all.

    Every second repeat goes the other way round: none profits from its place. `before` is called, untimed, with the
    name of the work that follows.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats):
        for name in list(works)[:: -1 if repeat % 2 else 1]:
            if before is not None:
                before(name)
            taken[name].append(seconds(works[name]))
    return taken


def median(values: Sequence[float]) -> float:
    """The median, so that one slow moment of a shared machine is not the result."""
    return statistics.median(values)


def quartiles(values: Sequence[float], scale: float = 1.0, form: str = ".2f") -> str:
    """The spread of a median, as it stands in a row's name: "quartiles 1.02–1.31"."""
    if len(values) < 2:
        return "one sample"
    low, _, high = statistics.quantiles(values, n=4)
    return f"quartiles {low * scale:{form}}–{high * scale:{form}}"
