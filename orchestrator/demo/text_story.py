"""The same story for texts: verses, wordllama 64-d → 256-d, two models nobody trained together, through an adapter."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.core.simulate import refresh_curve
from orchestrator.demo import live
from orchestrator.demo.report_data import NotRun, Point, TextStory
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, certify, galleries, models, rollouts
from orchestrator.service.names import find_gallery, find_model, find_query_set
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import adapted_file, load_matrix

GALLERY, QUERIES, OLD, NEW, ADAPTER = "verses", "kjv", "wordllama-64", "wordllama-256", "wordllama-64-to-256"
PAIRS = 8_000


def text_story(
    context: Context,
    worker: subprocess.Popen[bytes],
    say: Callable[[str], None],
    shown: Callable[[float, dict[str, Any]], None],
) -> TextStory | NotRun:
    """Run it on the given context with the given worker; NotRun names what is missing."""
    started = time.monotonic()
    try:
        gallery = galleries.create_gallery(context, GALLERY, "verses:web")
        _import_models(context)
    except UsageError as missing:
        return NotRun(str(missing))
    queries = galleries.import_query_set(context, GALLERY, QUERIES, "verses:kjv", split="tenth")
    say(f"{gallery.taken:,} verses (World English Bible), {queries.taken:,} queries (King James Version)")
    row = advance.embed_gallery(context, GALLERY, OLD)
    while rollouts.reread(context, row.id).state != "finalized":
        time.sleep(0.05)
    models.fit_adapter(context, OLD, NEW, GALLERY, name=ADAPTER, method="mlp", pairs=PAIRS)
    certificate = certify.certify(
        context, certify.CertifyRequest(OLD, NEW, GALLERY, QUERIES, ADAPTER, sample=10_000)
    )
    say(f"certificate {OLD} → {NEW} through the adapter: {certificate.verdict} ({certificate.reason})")
    if certificate.verdict != "certified":
        return NotRun(f"the pair was {certificate.verdict}: {certificate.reason}")
    with transaction(context.engine) as connection:
        found = find_gallery(connection, GALLERY)
    request = rollouts.StartRequest(GALLERY, NEW, adapter=ADAPTER, order="entropy", lease_s=live.LEASE_S)
    seen, _ = live.hot_refresh(
        context, found, request, "In the beginning God created the heaven", worker, kill_at=None, shown=shown
    )
    live.wait_for_evaluation(context, seen.rollout_id)
    rollouts.finalize(context, seen.rollout_id)
    return _story(context, seen.rollout_id, gallery.taken, queries.taken, time.monotonic() - started)


def _import_models(context: Context) -> None:
    from models.encoders.wordllama import create

    with tempfile.TemporaryDirectory(dir=context.settings.artifacts) as folder:
        for name, dims in ((OLD, 64), (NEW, 256)):
            create(Path(folder) / name, name, dims)
            models.import_model(context, Path(folder) / name, name)


def _story(context: Context, rollout_id: int, items: int, n_queries: int, seconds: float) -> TextStory:
    with transaction(context.engine) as connection:
        measured = read_view(connection, "flip_summary", rollout=rollout_id)
    right = [(row["both_right"] + row["positive_flips"]) / row["n"] for row in measured]
    first = measured[0]
    return TextStory(
        gallery="World English Bible",
        old_model=OLD,
        new_model=NEW,
        items=items,
        queries=n_queries,
        old_old=(first["both_right"] + first["negative_flips"]) / first["n"],
        new_old_without_adapter=NotRun("64 and 256 dimensions cannot meet in one search: refused"),
        new_old=right[0],
        new_new=right[-1],
        certified=True,
        curve=tuple(Point(row["coverage"], value) for row, value in zip(measured, right, strict=True)),
        random_curve=_random_curve(context, rollout_id),
        nfr_curve=tuple(Point(row["coverage"], row["nfr"]) for row in measured),
        seconds=seconds,
    )


def _random_curve(context: Context, rollout_id: int) -> tuple[Point, ...]:
    """What a random order would have given, from the stored extents."""
    with context.engine.connect() as connection:
        rollout = rollout_queries.rollout_by_id(connection, rollout_id)
        assert rollout is not None
        gallery = find_gallery(connection, GALLERY)
        query_set = load_query_set(connection, find_query_set(connection, gallery, QUERIES))
        adapted = np.array(adapted_file(connection, rollout).map())
        new = load_matrix(connection, gallery.id).vectors
        model = find_model(connection, NEW)
    queries, _ = encode_uris(context.encoder(model), query_set.uris)
    order = np.random.default_rng(0).permutation(len(new))
    nothing_known = np.zeros(len(queries), bool)
    points = refresh_curve(queries, adapted, new, order, query_set.relevance, nothing_known)
    return tuple(Point(p.coverage, p.r_at_1 or 0.0) for p in points)
