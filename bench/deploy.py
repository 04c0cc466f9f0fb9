"""Row 14: from `start` to the first answer by the new model, at 1e3 and at 1e6 stored vectors, without an adapter."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from PIL import Image

from bench.scratch import register_network, row, scratch_context
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries, models
from orchestrator.service import advance, rollouts
from orchestrator.serving.replica import Replica

DIM = 64


def run(repeats: int = 3, sizes: tuple[int, ...] = (1_000, 1_000_000), seed: int = 0) -> list[dict[str, Any]]:
    """Median of `repeats`; synthetic vectors, a replica that follows the log, queries encoded by a small network."""
    with scratch_context() as context:
        old, new = (
            register_network(context, name, number, DIM) for number, name in enumerate(("old", "new"))
        )
        taken = {n: statistics.median(_deploy(context, n, old.id, new.id, repeats, seed)) for n in sizes}
    smallest = taken[sizes[0]]
    return [
        row(14, f"`start` to first new-model answer, {n:,} × {DIM}, median of {repeats} (seed {seed})", seconds, "s",
            f"at {sizes[0]:,}: {smallest:.2f} s", seconds / smallest, "<= 5 s", seconds <= 5)
        for n, seconds in taken.items()
    ]  # fmt: skip


def _deploy(context: Context, n: int, old_id: int, new_id: int, repeats: int, seed: int) -> list[float]:
    name = f"synthetic-{n}"
    with transaction(context.engine) as connection:
        gallery_id = galleries.insert_gallery(connection, name=name, modality="image", source="bench")
        assert gallery_id is not None
        galleries.copy_items(connection, gallery_id, ((i, str(i), f"text:{i}", None) for i in range(n)))
        query_set = galleries.insert_query_set(
            connection, gallery_id=gallery_id, name="none", relevance="pairs", source="bench"
        )
        assert query_set is not None
        # Synthetic vectors have no right answers to measure; the certificate says so.
        models.insert_certificate(
            connection, query_model_id=new_id, gallery_model_id=old_id, adapter_id=None, query_set_id=query_set,
            verdict="certified", reason="synthetic rows of a benchmark", measured={},
        )  # fmt: skip
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    advance.import_embeddings(context, name, "old", vectors)
    with transaction(context.engine) as connection:
        gallery = galleries.gallery_by_id(connection, gallery_id)
    query = Image.new("L", (32, 32), 99)
    taken = []
    with Replica(context, gallery) as replica:
        replica.follow()
        for _ in range(repeats):
            replica.search([query], k=5)
            started = time.perf_counter()
            rollout = rollouts.start(context, rollouts.StartRequest(name, "new", order="random"))
            while replica.search([query], k=5)[0].model != "new":
                pass
            taken.append(time.perf_counter() - started)
            rollouts.rollback(context, rollout.id)
            while replica.search([query], k=5)[0].model != "old":
                time.sleep(0.05)
    return taken
