"""Row 14: from `start` to the first answer by the new model, at 1e3 and at 1e6 stored vectors, without an adapter."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bench.result import Row, median, quartiles
from bench.scratch import another_context, scratch_context
from bench.stubs import NumberedTexts
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries
from orchestrator.ledger.rows import GalleryRow
from orchestrator.service import certify, embed, models, rollouts
from orchestrator.service import start as starting
from orchestrator.serving.replica import Replica
from orchestrator.settings import Settings

DIM = 64
QUERIES = 200
MOVED = 0.2  # the new model's vectors stand at a cosine of about 0.99 to the old ones
LIMIT_S = 5.0


@dataclass(frozen=True)
class Taken:
    """Seconds from the call of `start` to its return, and to the first answer by the new model."""

    accepted_s: float
    answered_s: float


def run(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Medians of `repeats`: synthetic vectors, a measured certificate, a replica of its own that follows the log."""
    sizes = (1_000, 100_000 if quick else 1_000_000)
    with scratch_context(settings) as context:
        for name, moved in (("old", 0.0), ("new", MOVED)):
            _register(context, name, moved)
        loaded = {n: _load(context, n) for n in sizes}
        taken: dict[int, list[Taken]] = {n: [] for n in sizes}
        for _ in range(repeats):
            for n in sizes:
                taken[n].append(_deploy(context, loaded[n]))
    return [_row(n, taken[n], sizes[0], taken[sizes[0]]) for n in sizes]


def _row(n: int, taken: list[Taken], first: int, of_first: list[Taken]) -> Row:
    answered = [each.answered_s for each in taken]
    smallest = median([each.answered_s for each in of_first])
    return Row(
        14,
        f"`start` to the first new-model answer, {n:,} × {DIM} synthetic vectors, stub encoder, no adapter: "
        f"median of {len(taken)}, {quartiles(answered)}; accepted after {median([each.accepted_s for each in taken]):.3f} s",
        median(answered),
        "s",
        f"at {first:,}: {smallest:.3f} s",
        median(answered) / smallest,
        f"<= {LIMIT_S:g} s",
        median(answered) <= LIMIT_S,
    )


def _register(context: Context, name: str, moved: float) -> None:
    from models.encoders import factory

    folder = context.settings.data_dir / f"artifact-{name}"
    factory.create(folder, name, "bench.stubs:NumberedTexts", {"dim": DIM, "moved": moved})
    models.import_model(context, folder, name, own_code=True)


def _load(context: Context, n: int) -> GalleryRow:
    """A gallery of `n` stored vectors of the old model, and the certificate of the new one, measured on its queries."""
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
    embed.import_embeddings(context, name, "old", NumberedTexts(DIM).vectors(np.arange(n)))
    certificate = certify.certify(context, certify.CertifyRequest("old", "new", name))
    assert certificate.verdict == "certified", certificate.reason
    with transaction(context.engine) as connection:
        return galleries.gallery_by_id(connection, gallery_id)


def _deploy(context: Context, gallery: GalleryRow) -> Taken:
    """Start, ask without a pause until the new model answers, and roll back.

    The replica has a context of its own, as its own process has: it loads the new model when it first needs it.
    """
    with another_context(context) as serving, Replica(serving, gallery) as replica:
        replica.follow()
        assert replica.search(["query 7"], k=5)[0].model == "old"
        started = time.perf_counter()
        rollout = starting.start(context, starting.StartRequest(gallery.name, "new", order="random"))
        accepted_s = time.perf_counter() - started
        while (answer := replica.search(["query 7"], k=5)[0]).model != "new":
            assert replica.error is None, replica.error
        answered_s = time.perf_counter() - started
    assert answer.hits[0].key == "7", "the new model finds what it looks for in the old vectors"
    rollouts.rollback(context, rollout.id)
    return Taken(accepted_s, answered_s)
