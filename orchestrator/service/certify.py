"""Certificates: whether a query model may search a gallery model's embeddings, by measurement on a query set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.relevance import RelevanceKind
from orchestrator.errors import ConflictError, NotCertifiedError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import AdapterRow, CertificateRow, GalleryRow, ModelRow, QuerySetRow
from orchestrator.service.certify_codes import check_codecs, coded_vectors
from orchestrator.service.modalities import check_embeddable
from orchestrator.service.names import find_adapter, find_gallery, find_model, find_query_set
from orchestrator.service.stored import stored_by
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.queries import query_path, towered

if TYPE_CHECKING:
    from orchestrator.core.certificate import Judgement, Measurement
    from orchestrator.core.significance import RefreshIntervals
    from orchestrator.core.simulate import CurvePoint

Progress = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]


CODEC_LOSS = 0.01
"""Of recall at 1: codes are smaller, not better."""


@dataclass(frozen=True)
class CertifyRequest:
    """What to measure.

    Attributes:
        sample: gallery rows measured against: every relevant one, filled up with random others.
        seed: of the sample, of the simulated refresh's random order and of the resampled queries.
        tolerance: over 0: an interval that reaches further below the old system makes the verdict inconclusive.
        loss: of recall at 1, that is accepted; None: for a codec CODEC_LOSS, for any other model nothing.
    """

    old: str
    new: str
    gallery: str
    query_set: str | None = None
    adapter: str | None = None
    sample: int = 5000
    minimum_queries: int = 100
    seed: int = 0
    tolerance: float = 0.0
    loss: float | None = None


def certify(
    context: Context, request: CertifyRequest, progress: Progress = lambda done, total: None
) -> CertificateRow:
    """Measure M(old, old), M(new, old or adapted old), M(new, new) and a simulated refresh, and store the verdict.

    Raises:
        ConflictError: the gallery does not hold the old model's embeddings, or items that the new model cannot embed.
        NotCertifiedError: dimensions that differ, and no adapter.
        UsageError: a query set of clicks, or without relevance; one of another modality, and a codec.
        ConflictError: a query set of another modality than a model's, and no tower of that model for it.
    """
    from orchestrator.core.metrics import top_k
    from orchestrator.service.calibrating import Sample, calibrate

    with context.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        old, new = find_model(connection, request.old), find_model(connection, request.new)
        gallery = find_gallery(connection, request.gallery)
        query_set = load_query_set(connection, _known_relevance(connection, gallery, request.query_set))
        adapter = find_adapter(connection, request.adapter) if request.adapter else None
        asking_old, asking_new, tower = _asking(connection, old, new, query_set.row)
        check_embeddable(connection, gallery, new)
        matrix, of_old = stored_by(connection, gallery, old)
        rng = np.random.default_rng(request.seed)
        rows, relevance = _sample(query_set.relevance, np.flatnonzero(matrix.version), request.sample, rng)
        kept = of_old[rows]
        uris_old, uris_new = (
            [
                uri or ""
                for uri in gallery_queries.uris_of_rows(connection, gallery.id, some.tolist(), of.modality)
            ]
            for some, of in ((rows[~kept], old), (rows, new))
        )
    backward = adapter is not None and (adapter.source_model_id, adapter.target_model_id) == (new.id, old.id)
    _check_adapter(adapter, old, new)
    check_codecs(old, new)
    coded = new.base_model_id is not None
    if request.loss is None:
        request = replace(request, loss=CODEC_LOSS if coded else 0.0)
    if adapter is None and old.dim != new.dim and not coded:
        raise NotCertifiedError(
            f"{new.name!r} has {new.dim} dimensions and {old.name!r} {old.dim}: they cannot meet in one search without an "
            f"adapter. Fit one with `hotrefresh model adapt {old.name} {new.name} --gallery {gallery.name}`."
        )
    stored = np.zeros((len(rows), old.dim), np.float32)
    stored[kept] = matrix.vectors[rows[kept], : old.dim]  # of codes beside floats, the codes
    if not kept.all():  # a newer rollout holds these: what the old model makes of them is asked anew
        stored[~kept], _ = encode_uris(context.encoder(old), uris_old)
    base = context.adapter(adapter).transform(stored)[0] if adapter and not backward else stored
    old_queries, _ = encode_uris(context.encoder(asking_old), query_set.uris)
    failed: set[int] = set()
    cost = None
    if coded:
        asked = old_queries, query_set.uris
        found_codes = coded_vectors(context, gallery.name, old, new, rows, stored, asked, relevance, progress)
        new_queries, base, fresh = found_codes.queries, found_codes.base, found_codes.fresh
        failed, cost = found_codes.failed, found_codes.quantisation
    elif adapter and backward:  # queries move, the gallery never does: its start is its end
        new_queries, _ = encode_uris(context.encoder(asking_new), query_set.uris)
        new_queries, fresh = context.adapter(adapter).transform(new_queries)[0], base
    else:
        new_queries, _ = encode_uris(context.encoder(asking_new), query_set.uris)
        fresh, unembedded = encode_uris(context.encoder(new), uris_new, progress)
        failed = set(unembedded)
        fresh[sorted(failed)] = base[sorted(failed)]  # a quarantined item keeps its old place in the gallery
    old_right = relevance.hits(top_k(old_queries, stored, 1)[1]) & relevance.answerable
    unread = np.array(sorted(failed), np.int64)
    sample = Sample(
        new_queries, base, fresh, unread, relevance, old_right, old_queries, adapter is not None or coded
    )
    order = rng.permutation(len(rows))
    raw = _judged(sample.curve(order), old_right[sample.counted], rng, request)
    # Of its own generator: what is judged raw stays what it was. Where queries move, nothing is ever mixed.
    own_rng = np.random.default_rng([request.seed, 1])
    # One map stands for all queries of a rollout, and the scores of a tower are others: those stay raw.
    found = None if backward or tower else calibrate(sample, order, own_rng)
    chosen = raw
    if found is not None and found.fitted.effect.pays:
        calibrated = _judged(found.curve, old_right[sample.counted], own_rng, request)
        # A map that cuts flips is not worth a certificate.
        chosen = raw if raw.judgement.certified and not calibrated.judgement.certified else calibrated
    judgement = chosen.judgement
    report: dict[str, Any] = {
        **chosen.figures,
        "calibration": None if found is None else found.report(on=chosen is not raw),
        "uncalibrated": None if chosen is raw else raw.kept(),
        "guard": None if found is None else found.guard(chosen is not raw, own_rng),
        "quantisation": cost,
        "adapter_maps": None if adapter is None else "queries" if backward else "gallery",
        "lowest": judgement.lowest,
        "update_gain": judgement.update_gain,
        "gain_reference": judgement.gain_reference,
        "tolerance": request.tolerance,
        "accepted_loss": request.loss,
        "simulated_order": "random",
        "sampled_items": len(rows),
        "gallery_items": gallery.n_items,
        "whole_gallery": len(rows) == int(np.count_nonzero(matrix.version)),
        "unreadable_items": len(failed),
        "seed": request.seed,
    }
    with transaction(context.engine) as connection:
        certificate_id = model_queries.insert_certificate(
            connection,
            query_model_id=asking_new.id,
            gallery_model_id=old.id,
            adapter_id=adapter.id if adapter else None,
            query_set_id=query_set.row.id,
            verdict=judgement.verdict.value,
            reason=judgement.reason,
            measured=report,
            tower_of_model_id=new.id if tower else None,
        )
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action=f"pair.{judgement.verdict.value}",
            target=f"{f'{asking_new.name} for ' if tower else ''}{new.name} on {old.name}"
            f"{f' through {adapter.name}' if adapter else ''}",
            after={"certificate": certificate_id},
        )
        row = model_queries.newest_certificate(
            connection,
            gallery.id,
            asking_new.id,
            old.id,
            adapter.id if adapter else None,
            tower_of_model_id=new.id if tower else None,
        )
    assert row is not None
    return row


@dataclass(frozen=True)
class _Judged:
    """A simulated refresh and what is said of it."""

    judgement: Judgement
    figures: dict[str, Any]

    def kept(self) -> dict[str, Any]:
        """The verdict and the figures that calibrated scores stand in for."""
        kept = {key: self.figures[key] for key in ("curve", "flips")}
        intervals = {
            key: self.figures["intervals"].get(key) for key in ("start_difference", "lowest_difference")
        }
        judgement = self.judgement
        return {
            "verdict": judgement.verdict.value,
            "reason": judgement.reason,
            "lowest": judgement.lowest,
            "intervals": intervals,
            **kept,
        }


def _judged(
    curve: list[CurvePoint],
    old_right: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    request: CertifyRequest,
) -> _Judged:
    """The verdict over a refresh; `old_right` (n,) bool, of the queries that count."""
    from orchestrator.core.certificate import judge

    intervals = _intervals(old_right, curve, rng)
    measured = _measurement(float(old_right.sum()), curve, intervals)
    judgement = judge(measured, request.minimum_queries, request.tolerance, request.loss or 0.0)
    return _Judged(judgement, _figures(measured, curve, intervals))


def _asking(
    connection: Connection, old: ModelRow, new: ModelRow, queries: QuerySetRow
) -> tuple[ModelRow, ModelRow, bool]:
    """What embeds the queries of the old and of the new system, and whether that of the new one is a tower."""
    if queries.modality == old.modality == new.modality:  # codecs too
        return old, new, False
    if new.base_model_id is not None or old.base_model_id is not None:
        raise UsageError(
            f"query set {queries.name!r} holds {queries.modality}s, and {new.name!r} or {old.name!r} is a codec: codes are "
            f"measured on queries of {new.modality}s only. Name such a query set by --queryset."
        )
    paths = [
        towered(connection, query_path(connection, each.id, None), queries.modality) for each in (old, new)
    ]
    return paths[0].embedder, paths[1].embedder, paths[1].tower is not None


def _known_relevance(connection: Connection, gallery: GalleryRow, name: str | None) -> QuerySetRow:
    """The query set to measure on; without a name, the only one whose relevance is known."""
    if name is None:
        sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
        known = [row for row in sets if RelevanceKind(row.relevance).known]
        if len(known) == 1:
            return known[0]
    row = find_query_set(connection, gallery, name)
    if not RelevanceKind(row.relevance).known:
        what = "clicks" if row.relevance == RelevanceKind.CLICKS else "no relevance"
        raise UsageError(
            f"query set {row.name!r} has {what}: nothing can be certified on it, because nobody knows which answers are right. "
            f"Import queries with labels or --pairs: `hotrefresh queryset import {gallery.name} NAME SOURCE`."
        )
    return row


def _intervals(
    old_right: npt.NDArray[np.bool_], curve: list[CurvePoint], rng: np.random.Generator
) -> RefreshIntervals | None:
    from orchestrator.core.significance import refresh_intervals

    return refresh_intervals(old_right, np.array([point.answers for point in curve]), rng)


def _measurement(old_hits: float, curve: list[CurvePoint], intervals: RefreshIntervals | None) -> Measurement:
    from orchestrator.core.certificate import Measurement
    from orchestrator.core.simulate import lowest_point

    worst = lowest_point(curve)
    return Measurement(
        old_old=old_hits / curve[0].n if curve[0].n else None,
        new_old=curve[0].r_at_1,
        new_new=curve[-1].r_at_1,
        curve=[point.r_at_1 or 0.0 for point in curve],
        n_queries=curve[0].n,
        start_flips=curve[0].flips if curve[0].n else None,
        worst_flips=worst.flips if worst else None,
        start_difference=intervals.start_difference if intervals else None,
        lowest_difference=intervals.lowest_difference if intervals else None,
    )


def _figures(
    measured: Measurement, curve: list[CurvePoint], intervals: RefreshIntervals | None
) -> dict[str, Any]:
    """What was measured, as the certificate keeps it."""
    from orchestrator.core.significance import CONFIDENCE, RESAMPLES
    from orchestrator.core.simulate import lowest_point

    worst = lowest_point(curve)
    return {
        "metric": "recall_at_1",
        "old_old": measured.old_old,
        "new_old": measured.new_old,
        "new_new": measured.new_new,
        "curve": [
            {"coverage": p.coverage, "value": p.r_at_1, "nfr": p.flips.nfr, "pfr": p.flips.pfr} for p in curve
        ],
        "queries": measured.n_queries,
        "intervals": {
            "method": "percentile bootstrap over queries",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            **(asdict(intervals) if intervals else {}),
        },
        "flips": {"start": _flips(curve[0]), "worst": _flips(worst) if worst else None},
    }


def _flips(point: CurvePoint) -> dict[str, Any]:
    """The flips of one state against the old system, and the chance of flips as one-sided as these."""
    from orchestrator.core.significance import mcnemar_p

    return {
        "coverage": point.coverage,
        "queries": point.n,
        "negative": point.negative_flips,
        "positive": point.positive_flips,
        "mcnemar_p": mcnemar_p(point.negative_flips, point.positive_flips),
    }


def _check_adapter(adapter: AdapterRow | None, old: ModelRow, new: ModelRow) -> None:
    """Forward it lifts stored embeddings of `old` to where `new` is; backward it leads from `new` to `old`."""
    if adapter is None or (adapter.source_model_id, adapter.target_model_id) == (new.id, old.id):
        return
    if adapter.source_model_id != old.id:
        raise ConflictError(
            f"adapter {adapter.name!r} does not lead from {old.name!r}, nor from {new.name!r} to {old.name!r}."
        )
    lifted_dim = int(adapter.manifest["dim"])
    if lifted_dim != new.dim:
        raise ConflictError(
            f"adapter {adapter.name!r} leads to {lifted_dim} dimensions, {new.name!r} has {new.dim}."
        )


def _sample(
    relevance: Any, rows: npt.NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], Any]:
    """Rows to measure against, rising, and the relevance renumbered to them."""
    from orchestrator.core.metrics import Relevance

    needed = np.intersect1d(relevance.rows, rows)
    others = np.setdiff1d(rows, needed, assume_unique=True)
    extra = max(0, min(len(others), size - len(needed)))
    chosen = np.sort(np.concatenate([needed, rng.choice(others, extra, replace=False)])).astype(np.int64)
    query_of = np.repeat(np.arange(len(relevance)), relevance.counts)
    kept = np.isin(relevance.rows, chosen)
    return chosen, Relevance.from_pairs(
        len(relevance), query_of[kept], np.searchsorted(chosen, relevance.rows[kept])
    )
