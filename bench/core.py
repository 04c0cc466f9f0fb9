"""Rows 1, 2, 4, 5, 8 and 14: commits, plans, extents, the pipeline, ordering, deployment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench import commit_batch, deploy, drain_pipeline, load_plan, order_scores, write_extent
from bench.scratch import host

PARTS = (commit_batch, load_plan, write_extent, drain_pipeline, order_scores, deploy)


def run(folder: Path = Path("bench-results")) -> dict[str, Any]:
    """Run every part and write <folder>/core.json; the same document is returned."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        rows += part.run()
    document = {"schema_version": 1, "bench": "core", "host": host(seed=0), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "core.json").write_text(json.dumps(document, indent=2, default=str) + "\n")
    return document
