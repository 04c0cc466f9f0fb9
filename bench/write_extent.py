"""Row 4: write an extent durably, checksum included, beside a raw pwrite and fdatasync of the same bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.scratch import in_turns, medians, row
from orchestrator.settings import load_settings
from orchestrator.store.extents import VECTORS, ExtentFile


def run(samples: int = 100, n: int = 1024, dim: int = 256, seed: int = 0) -> list[dict[str, Any]]:
    """Medians of `samples`, in turns, both into files that have their full size already."""
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    data_dir = load_settings().data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as folder:
        extents = ExtentFile(Path(folder), VECTORS, n * 8, dim)
        extents.create()
        raw = os.open(Path(folder) / "raw", os.O_RDWR | os.O_CREAT)
        os.ftruncate(raw, extents.size_bytes)
        turn = [0]

        def write_raw() -> None:
            os.pwrite(raw, vectors.data.cast("B"), (turn[0] % 8) * vectors.nbytes)
            os.fdatasync(raw)

        def write_extent() -> None:
            extents.write((turn[0] % 8) * n, vectors)
            turn[0] += 1

        in_turns({"raw": write_raw, "extent": write_extent}, 16)  # both files have their blocks
        taken = medians(in_turns({"raw": write_raw, "extent": write_extent}, samples))
        extents.close()
        os.close(raw)
    ratio = taken["extent"] / taken["raw"]
    return [
        row(4, f"write an extent, {n:,} × {dim} float32, with CRC-32, median of {samples}", taken["extent"] * 1e3, "ms",
            f"raw pwrite + fdatasync, {taken['raw'] * 1e3:.2f} ms", ratio, "<= 1.5", ratio <= 1.5),
    ]  # fmt: skip
