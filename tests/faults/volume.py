"""How much the suite injects. Kinds of fault are always all; only their number is scaled.

HOTREFRESH_FAULT_VOLUME is a factor: 1 is a CI run (the default), 50 a release run.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Read once, when imported: tests take every HOTREFRESH_ variable out of the environment.
FACTOR = float(os.environ.get("HOTREFRESH_FAULT_VOLUME", "1"))
SEED = int(os.environ.get("HOTREFRESH_FAULT_SEED", "20260"))


def scaled(ci: int, least: int = 1) -> int:
    """The number for this run of what a CI run does `ci` times."""
    return max(least, round(ci * FACTOR))
