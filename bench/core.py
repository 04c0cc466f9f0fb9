"""Rows 1, 2, 4, 5, 8 and 14: commits, plans, extents, the pipeline, ordering, deployment."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import commit_batch, deploy, drain_pipeline, load_plan, order_scores, write_extent
from bench.result import Row, document, machine
from bench.scratch import database, scratch_context
from orchestrator.errors import UsageError
from orchestrator.settings import Settings, load_settings

FOLDER = Path("bench-results")
Say = Callable[[str], None]
Part = tuple[str, Callable[..., list[Row]]]
"""What is being done, in words, and what measures it."""


def run(
    settings: Settings | None = None,
    *,
    repeats: int = 5,
    rows: Collection[int] | None = None,
    quick: bool = False,
    say: Say | None = None,
    folder: Path = FOLDER,
) -> dict[str, Any]:
    """Measure, write <folder>/core.json, and return the same document.

    Args:
        settings: whose server and disk are measured, in a database and a folder of their own; None: as configured.
        rows: the rows wanted; None: all.
        quick: smaller sizes and two repeats, under half a minute: to see that it works, not to quote.
        say: told what is measured next.

    Raises:
        UsageError: a row that is not measured here.
    """
    return measure("core", PARTS, settings, repeats=repeats, rows=rows, quick=quick, say=say, folder=folder)


def measure(
    name: str,
    parts: Mapping[int, Part],
    settings: Settings | None,
    *,
    repeats: int,
    rows: Collection[int] | None = None,
    quick: bool,
    say: Say | None,
    folder: Path,
) -> dict[str, Any]:
    """What `run` does, for a benchmark of this name and these parts; writes <folder>/<name>.json."""
    if unknown := set(rows or ()) - set(parts):
        raise UsageError(
            f"bench {name} does not measure row {min(unknown)}; it measures {', '.join(map(str, parts))}."
        )
    pin_threads()
    settings = settings or load_settings()
    repeats = min(repeats, 2) if quick else repeats
    before = machine()["load_average"]
    with scratch_context(settings) as context:  # kept open: an embedded server is started once
        described = database(context)
        measured: list[Row] = []
        for number, (doing, part) in parts.items():
            if rows is None or number in rows:
                if say:
                    say(f"row {number}: {doing}")
                measured += part(settings, repeats=repeats, quick=quick)
    if quick:  # the targets are for the full sizes
        measured = [replace(row, holds=None) for row in measured]
    result = document(
        name,
        measured,
        postgresql=described,
        load_average_before=before,
        repeats=repeats,
        quick=quick,
        seed=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return result


def pin_threads() -> None:
    """One thread for torch and faiss as for every other library (the package's import did that for the rest)."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _ordering(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Row 8, which needs neither a server nor a disk."""
    n = 1_000_000 if quick else 10_000_000
    return [Row(**row) for row in order_scores.run(repeats, n, window=n * 65_536 // 10_000_000)]


PARTS: dict[int, Part] = {
    1: ("committing batches", commit_batch.run),
    2: ("storing plans", load_plan.run),
    4: ("writing extents", write_extent.run),
    5: ("draining rollouts", drain_pipeline.run),
    8: ("ordering scores", _ordering),
    14: ("deploying a new model", deploy.run),
}
"""What measures each row, in the order of running."""
