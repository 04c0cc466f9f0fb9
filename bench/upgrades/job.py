"""One job of the benchmark: whose it is, where its results lie, and which version of the code they belong to.

Results lie in `<folder>/<digest of the code>/<data>/<split>/seed-<n>/<part>/`: another version of the code measures anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

RESULT = "result.json"
_ROOT = Path(__file__).resolve().parents[2]
_MEASURED_CODE = ("models", "bench/upgrades", "orchestrator/core")
_SHOWING = ("summary.py", "table.py", "plots.py")  # they change how figures look, not what they are


@dataclass(frozen=True)
class Job:
    """`part` says what is done: "old", "encoder-<method>", "embed-<encoder>" or "arm-<arm>"."""

    root: Path
    data: str
    split: str
    seed: int
    part: str

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        return self.root / self.data / self.split / f"seed-{self.seed}" / self.part.replace(" ", "_")

    @property
    def kind(self) -> str:
        """What comes before the first hyphen of the part."""
        return self.part.partition("-")[0]

    @property
    def name(self) -> str:
        """What comes behind it."""
        return self.part.partition("-")[2]

    def beside(self, part: str) -> Job:
        """Another part of the same data, split and seed."""
        return replace(self, part=part)


def code_digest() -> str:
    """Of the source that a figure depends on: twelve hex digits."""
    digest = hashlib.sha256()
    for folder in _MEASURED_CODE:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            if folder == "bench/upgrades" and path.name in _SHOWING:
                continue
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def result_of(job: Job) -> dict[str, Any]:
    """What the job wrote. Raises FileNotFoundError when it is not done."""
    result: dict[str, Any] = json.loads((job.folder / RESULT).read_text())
    return result


def done_once(job: Job, do: Callable[[Job], Mapping[str, Any]]) -> float:
    """Do a job on one thread, unless it is done; returns the seconds that it took."""
    try:
        return float(result_of(job)["seconds"])
    except FileNotFoundError:
        shutil.rmtree(job.folder, ignore_errors=True)  # interrupted half-way
    torch.set_num_threads(1)
    started = time.monotonic()
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    found = do(job)
    job.folder.mkdir(exist_ok=True)
    seconds = time.monotonic() - started
    (job.folder / RESULT).write_text(json.dumps({"seconds": seconds, **found}))
    return seconds
