"""Row 4: write an extent durably, checksum included, beside a raw pwrite and fdatasync of the same bytes."""

from __future__ import annotations

import itertools
import os
import zlib

import numpy as np

from bench.result import Row, in_turns, median, quartiles
from bench.scratch import scratch_folder
from orchestrator.settings import Settings, load_settings
from orchestrator.store import open_extents

PLACES = 8


def run(
    settings: Settings | None = None,
    *,
    repeats: int = 5,
    quick: bool = False,
    n: int = 1024,
    dim: int = 256,
    seed: int = 0,
) -> list[Row]:
    """Medians of 30 writes a repeat, in turns, both into files whose blocks are there already."""
    samples = repeats * (10 if quick else 30)
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    data = vectors.data.cast("B")
    with scratch_folder(settings or load_settings()) as folder:
        extents = open_extents(str(folder), dim)
        raw = os.open(folder / "raw", os.O_RDWR | os.O_CREAT)
        raw_places, extent_places = (itertools.cycle(range(PLACES)) for _ in range(2))

        def write_raw() -> None:
            os.pwrite(raw, data, next(raw_places) * len(data))
            os.fdatasync(raw)

        def write_extent() -> None:
            checksum = extents.write(next(extent_places) * n, 1, vectors)
            assert checksum == expected

        expected = zlib.crc32(data)
        works = {"raw": write_raw, "extent": write_extent}
        in_turns(works, 2 * PLACES)  # every block of both files is written
        taken = in_turns(works, samples)
        extents.close()
        os.close(raw)
    raw_s, extent_s = median(taken["raw"]), median(taken["extent"])
    ratio = extent_s / raw_s
    return [
        Row(4, f"write an extent, {n:,} × {dim} float32, with CRC-32: p50 of {samples}, {quartiles(taken['extent'], 1e3)}",
            extent_s * 1e3, "ms", f"raw pwrite + fdatasync {raw_s * 1e3:.2f} ms, {quartiles(taken['raw'], 1e3)}", ratio,
            "<= 1.5", ratio <= 1.5),
    ]  # fmt: skip
