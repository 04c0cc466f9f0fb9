"""A gallery that is refreshed at a fixed rate: committed batches and extents, written by a process of its own.

Run as a program it is that writer. It is told `go BATCHES` a line, and answers a line when they are committed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.stubs import NumberedTexts
from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.ledger.database import Line, transaction
from orchestrator.ledger.queries import batches, galleries, rollouts
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service import background
from orchestrator.serving.matrix import extents_of, rows_of_ranks
from orchestrator.settings import load_settings

RATE_PER_S = 10_000
BATCH = 1024
QUERIES = 200
MOVED = 0.2
"""The new model's vectors stand at a cosine of about 0.99 to the old ones."""
OLD, NEW = "old", "new"


def register(context: Context, dim: int, moved: float = MOVED) -> None:
    """The old and the new model: stubs that compute next to nothing."""
    from models.encoders import factory
    from orchestrator.service import models

    for name, share in ((OLD, 0.0), (NEW, moved)):
        folder = context.settings.data_dir / f"artifact-{name}"
        factory.create(folder, name, "bench.stubs:NumberedTexts", {"dim": dim, "moved": share})
        models.import_model(context, folder, name, own_code=True)


def load(context: Context, n: int, dim: int) -> GalleryRow:
    """A gallery of `n` stored vectors of the old model, and the certificate of the new one, measured on its queries."""
    # Here and not above, as in the two functions beside: the writer's process starts without torch and scipy.
    from orchestrator.service import certify, embed

    name = f"synthetic-{n}"
    asked = np.linspace(0, n - 1, QUERIES).astype(int).tolist()
    with transaction(context.engine) as connection:
        gallery_id = galleries.insert_gallery(connection, name=name, modality="text", source="bench")
        assert gallery_id is not None
        galleries.copy_items(connection, gallery_id, ((i, str(i), f"text:item {i}", None) for i in range(n)))
        query_set = galleries.insert_query_set(
            connection, gallery_id=gallery_id, name="asked", relevance="pairs", source="bench"
        )
        assert query_set is not None
        queries = [(no, str(no), f"text:query {row}", None, {}) for no, row in enumerate(asked)]
        galleries.copy_queries(connection, query_set, queries, enumerate(asked))
    embed.import_embeddings(context, name, OLD, NumberedTexts(dim).vectors(np.arange(n)))
    certificate = certify.certify(context, certify.CertifyRequest(OLD, NEW, name))
    assert certificate.verdict == "certified", certificate.reason
    with transaction(context.engine) as connection:
        return galleries.gallery_by_id(connection, gallery_id)


def begin(context: Context, gallery: GalleryRow, batch_size: int = BATCH) -> RolloutRow:
    """Deploy the new model and plan the refresh, in a random order."""
    from orchestrator.service import advance
    from orchestrator.service import start as starting

    request = starting.StartRequest(gallery.name, NEW, order="random", batch_size=batch_size)
    return advance.advance(context, starting.start(context, request).id)


class Writer:
    """The process that refreshes: claims, encodes by the stub, writes extents, commits, each batch at its moment."""

    def __init__(self, context: Context, rollout: RolloutRow, rate_per_s: int = RATE_PER_S) -> None:
        command = [sys.executable, "-m", "bench.refreshed", str(rollout.id), str(rate_per_s)]
        self._process = subprocess.Popen(
            command,
            env=background.worker_environment(context.settings),
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it is there

    def go(self, batches: int) -> None:
        """Refresh so many batches, at the rate; does not wait."""
        _line(self._process.stdin, f"go {batches}")

    def wait(self) -> dict[str, Any]:
        """What became of it: items, seconds, seconds of processor time, the most it was late."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writer ended"
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextmanager
def writer(context: Context, rollout: RolloutRow, rate_per_s: int = RATE_PER_S) -> Iterator[Writer]:
    """A writer, ended at the end."""
    opened = Writer(context, rollout, rate_per_s)
    try:
        yield opened
    finally:
        opened.close()


def _line(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    print(text, file=stream, flush=True)


def _write(context: Context, rollout_id: int, rate_per_s: int) -> None:
    with transaction(context.engine) as connection:
        rollout = rollouts.rollout_by_id(connection, rollout_id)
        assert rollout is not None
        extents = extents_of(connection, rollout)
    model = NumberedTexts(extents.format.dim, MOVED)
    line = Line(context.engine)
    print("{}", flush=True)
    for told in sys.stdin:
        count = int(told.split()[1])
        started, busy, items, late_s = time.perf_counter(), time.process_time(), 0, 0.0
        for _ in range(count):
            due = started + items / rate_per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            late_s = max(late_s, time.perf_counter() - due)
            with line.use() as connection:
                claim = batches.claim_batch(connection, rollout_id, "bench", 60)
            if claim is None:
                break
            with line.use() as connection:
                rows = rows_of_ranks(connection, rollout, claim.first_rank, claim.n, claim.plan_revision)
            crc = extents.write(claim.first_rank, claim.fence, model.vectors(rows))
            with line.use() as connection:
                assert batches.commit_batch(connection, claim, crc=crc, holes=[]) is not None
            items += claim.n
        taken = {"items": items, "late_s": late_s, "processor_s": time.process_time() - busy}
        print(json.dumps({**taken, "seconds": time.perf_counter() - started}), flush=True)
    line.close()


def main(rollout_id: int, rate_per_s: int) -> None:
    """The writer, until its input ends."""
    with open_context(load_settings(), migrate=False) as context:
        _write(context, rollout_id, rate_per_s)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
