"""The figures of the fault suite: every test records its own here, `python -m tests.faults.report` prints the table."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.volume import FACTOR, ROOT

if TYPE_CHECKING:
    from tests.faults.oracle import Truth

FOLDER = ROOT / "reports"
FILE = FOLDER / "faults.json"
# Figures of one run add up over its processes; those of an older run of the same measure are replaced.
RUN = os.environ.setdefault("HOTREFRESH_FAULT_RUN", secrets.token_hex(4))


@dataclass
class Figures:
    """What one measure found.

    Attributes:
        injected: how many faults of this kind really happened.
        recovery_s: seconds from each fault until work flowed again, where that is measured.
        limit_s: what no recovery may exceed; None: not limited.
        detail: further figures, such as how often each fail point fired.
    """

    measure: str
    target: str
    injected: int
    met: bool
    lost: int = 0
    duplicated: int = 0
    stale_accepted: int = 0
    wrong_bytes: int = 0
    recovery_s: list[float] = field(default_factory=list)
    limit_s: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    run: str = RUN
    at: float = field(default_factory=time.time)
    volume: float = FACTOR


COUNTS = ("lost", "duplicated", "stale_accepted", "wrong_bytes")


def counted(truths: Iterable[Truth]) -> dict[str, Any]:
    """The oracle's counts, added up."""
    judged = list(truths)
    return {name: sum(getattr(truth, name) for truth in judged) for name in COUNTS}


def record(figures: Figures) -> None:
    """Write or add a measure's figures to the report."""
    with _locked() as stored:
        before = stored.get(figures.measure)
        stored[figures.measure] = asdict(figures) if before is None else _merged(before, asdict(figures))


def _merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    if before["run"] != now["run"]:
        return now
    merged = dict(now)
    for name in ("injected", *COUNTS):
        merged[name] = before[name] + now[name]
    merged["recovery_s"] = before["recovery_s"] + now["recovery_s"]
    merged["met"] = before["met"] and now["met"]
    merged["detail"] = before["detail"] | now["detail"]
    return merged


@contextmanager
def _locked() -> Iterator[dict[str, Any]]:
    """The stored figures by measure, written back at the end; one process at a time."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored = json.loads(FILE.read_text()) if FILE.exists() else {}
        yield stored
        partial = FILE.with_suffix(".new")
        partial.write_text(json.dumps(stored, indent=1, sort_keys=True))
        partial.rename(FILE)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


COLUMNS = ("measure", "injected", "lost", "duplicated", "stale accepted", "wrong bytes",
           "recovery p50 / p99 / max, s", "target", "met")  # fmt: skip


def newest_run(stored: dict[str, dict[str, Any]]) -> str:
    """The run of the figures that were written last."""
    return str(max(stored.values(), key=lambda found: found.get("at", 0.0))["run"])


def verdict(found: dict[str, Any], newest: str) -> str:
    """Whether a measure met its target; figures of an older run say nothing about this one."""
    if found["run"] != newest:
        return "older run"
    return "yes" if found["met"] else "**no**"


def table(stored: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    newest = newest_run(stored)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name in sorted(stored):
        found = stored[name]
        times = found["recovery_s"]
        recovery = " / ".join(f"{quantile(times, q):.2f}" for q in (0.5, 0.99, 1.0)) if times else "–"
        counts = [found[key] for key in ("injected", *COUNTS)]
        cells = [
            name,
            *(f"{count:,}" for count in counts),
            recovery,
            found["target"],
            verdict(found, newest),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(path: Path = FILE) -> int:
    """Print the table; 1 where a target is missed, a measure is left over from an older run, or there is nothing."""
    if not path.exists():
        print("there are no figures yet; run `make test-faults` first", file=sys.stderr)
        return 1
    stored = json.loads(path.read_text())
    print(table(stored))
    return 0 if all(verdict(found, newest_run(stored)) == "yes" for found in stored.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
