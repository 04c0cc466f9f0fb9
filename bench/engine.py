"""Rows 1, 5 and 6: committing a batch, keeping the encoder busy, and the broker's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import broker_memory, core
from orchestrator.settings import Settings

PARTS: dict[int, core.Part] = {
    1: core.PARTS[1],
    5: core.PARTS[5],
    6: ("ringing for up to a million batches", broker_memory.run),
}
"""What measures each row, in the order of running."""


def run(
    settings: Settings | None = None,
    *,
    repeats: int = 5,
    quick: bool = False,
    say: core.Say | None = None,
    folder: Path = core.FOLDER,
) -> dict[str, Any]:
    """Measure, write <folder>/engine.json, and return the same document; the arguments are those of `core.run`."""
    return core.measure("engine", PARTS, settings, repeats=repeats, quick=quick, say=say, folder=folder)
