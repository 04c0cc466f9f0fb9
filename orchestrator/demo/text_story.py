"""The same story for texts: verses, wordllama 64-d → 256-d, two models nobody trained together, through an adapter.

Whether it ends in a refresh is the certificate's to say. Where it refuses, the curve that made it refuse is shown.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.demo import live
from orchestrator.demo.report_data import Curve, NotRun, Point, TextStory
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.ledger.rows import CertificateRow
from orchestrator.service import embed, finish, galleries, models
from orchestrator.service import start as starting
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.service.names import find_gallery
from orchestrator.service.wait import wait_for

GALLERY, QUERIES, OLD, NEW = "verses", "kjv", "wordllama-64", "wordllama-256"
ADAPTERS = {"procrustes": "wordllama-procrustes", "mlp": "wordllama-mlp"}
PAIRS = 8_000
SAMPLE = 10_000


def text_story(
    context: Context,
    worker: subprocess.Popen[bytes],
    methods: tuple[str, ...],
    say: Callable[[str], None],
    shown: Callable[[float, dict[str, Any]], None],
) -> TextStory | NotRun:
    """Run it on the given context with the given worker, trying these adapters; NotRun names what is missing."""
    started = time.monotonic()
    try:
        gallery = galleries.create_gallery(context, GALLERY, "verses:web")
        _import_models(context)
    except UsageError as missing:
        return NotRun(str(missing))
    queries = galleries.import_query_set(context, GALLERY, QUERIES, "verses:kjv", split="tenth")
    say(f"{gallery.taken:,} verses (World English Bible), {queries.taken:,} queries (King James Version)")
    row = embed.embed_gallery(context, GALLERY, OLD)
    wait_for(context, row.id, {RolloutState.FINALIZED}, poll_s=0.1)
    best = _best_certificate(context, methods, say)
    measured: Curve = ()
    if best.verdict == "certified":
        measured = _refresh(context, worker, best, shown)
    return _story(best, measured, gallery.taken, queries.taken, time.monotonic() - started)


def _import_models(context: Context) -> None:
    from models.encoders.wordllama import create

    with tempfile.TemporaryDirectory(dir=context.settings.artifacts) as folder:
        for name, dims in ((OLD, 64), (NEW, 256)):
            create(Path(folder) / name, name, dims)
            models.import_model(context, Path(folder) / name, name)


def _best_certificate(
    context: Context, methods: tuple[str, ...], say: Callable[[str], None]
) -> CertificateRow:
    """Fit each adapter, certify each; the certified one, or the one that starts highest."""
    found = []
    for method in methods:
        name = ADAPTERS[method]
        models.fit_adapter(context, OLD, NEW, GALLERY, name=name, method=method, pairs=PAIRS)
        certificate = certify(context, CertifyRequest(OLD, NEW, GALLERY, QUERIES, name, sample=SAMPLE))
        say(f"{OLD} → {NEW} through {method}: {certificate.verdict} ({certificate.reason})")
        found.append(certificate)
    return max(found, key=lambda c: (c.verdict == "certified", c.measured["new_old"]))


def _refresh(
    context: Context,
    worker: subprocess.Popen[bytes],
    certificate: CertificateRow,
    shown: Callable[[float, dict[str, Any]], None],
) -> Curve:
    """The real rollout of a certified pair: recall after every batch."""
    from orchestrator.ledger.queries import models as model_queries

    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, GALLERY)
        assert certificate.adapter_id is not None
        adapter = model_queries.adapter_by_id(connection, certificate.adapter_id)
    request = starting.StartRequest(GALLERY, NEW, adapter=adapter.name, order="entropy", lease_s=live.LEASE_S)
    seen, _ = live.hot_refresh(
        context,
        gallery,
        request,
        "In the beginning God created the heaven",
        worker,
        kill_at=None,
        shown=shown,
    )
    live.wait_for_evaluation(context, seen.rollout_id)
    finish.finalize(context, seen.rollout_id)
    with transaction(context.engine) as connection:
        rows = read_view(connection, "flip_summary", rollout=seen.rollout_id, k=1, slice="all")
    return tuple(Point(r["coverage"], (r["both_right"] + r["positive_flips"]) / r["n"]) for r in rows)


def _story(
    certificate: CertificateRow, measured: Curve, items: int, n_queries: int, seconds: float
) -> TextStory:
    values = certificate.measured
    simulated = tuple(Point(p["coverage"], p["value"]) for p in values["curve"])
    certified = certificate.verdict == "certified"
    return TextStory(
        gallery="World English Bible",
        old_model=OLD,
        new_model=NEW,
        items=items,
        queries=n_queries,
        old_old=values["old_old"],
        new_old_without_adapter=NotRun("64 and 256 dimensions cannot meet in one search: refused"),
        new_old=values["new_old"],
        new_new=values["new_new"],
        certified=certified,
        curve=measured
        if certified
        else NotRun("the certificate refused the pair, so nothing was rolled out"),
        random_curve=simulated,
        nfr_curve=tuple(Point(p["coverage"], p["nfr"]) for p in values["curve"]),
        seconds=seconds,
    )
