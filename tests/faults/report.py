"""The figures of the fault suite: every test records its own here, `python -m tests.faults.report` prints the table."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.volume import FACTOR, ROOT

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
    volume: float = FACTOR


def record(figures: Figures) -> None:
    """Write or add a measure's figures to the report."""
    with _locked() as stored:
        before = stored.get(figures.measure)
        stored[figures.measure] = asdict(figures) if before is None else _merged(before, asdict(figures))


def _merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    if before["run"] != now["run"]:
        return now
    merged = dict(now)
    for name in ("injected", "lost", "duplicated", "stale_accepted", "wrong_bytes"):
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


def table(stored: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name in sorted(stored):
        found = stored[name]
        times = found["recovery_s"]
        recovery = " / ".join(f"{quantile(times, q):.2f}" for q in (0.5, 0.99, 1.0)) if times else "–"
        counts = [found[key] for key in ("injected", "lost", "duplicated", "stale_accepted", "wrong_bytes")]
        cells = [
            name,
            *(f"{count:,}" for count in counts),
            recovery,
            found["target"],
            "yes" if found["met"] else "**no**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(path: Path = FILE) -> int:
    """Print the table; 1 where a target is missed or there is nothing to print."""
    if not path.exists():
        print("there are no figures yet; run `make test-faults` first", file=sys.stderr)
        return 1
    stored = json.loads(path.read_text())
    print(table(stored))
    return 0 if all(found["met"] for found in stored.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
