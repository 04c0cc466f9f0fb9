"""From what the demo did to what its report says."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.context import Context
from orchestrator.core.metrics import Relevance
from orchestrator.core.simulate import CurvePoint
from orchestrator.demo import live
from orchestrator.demo.report_data import (
    Answer,
    Certificate,
    Curve,
    Flip,
    KilledWorker,
    Machine,
    MethodRun,
    NotRun,
    Point,
    Rollout,
    SeedRun,
    TimelineEvent,
)
from orchestrator.demo.simulation import ArmCurves, ArmVectors, measure_arm
from orchestrator.demo.training import METHODS, load_vectors
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.ledger.rows import CertificateRow, RolloutRow
from orchestrator.service import rollouts

UPGRADE = "ract_adapter"


def simulate_seed(folder: Path, seed: int, temperature: float, random_orders: int) -> SeedRun:
    """All four paths of one seed, from the embeddings its training left; runs in a process of its own."""
    import torch

    from models.datasets import glyphs
    from models.training import load_prototypes

    torch.set_num_threads(1)
    artifacts = {part: folder / f"seed-{seed}" / part for part in ("old", *METHODS, "adapter")}
    relevance = Relevance.from_labels(
        glyphs.pictures("queries")[1].tolist(), glyphs.pictures("gallery")[1].tolist()
    )
    old = {split: load_vectors(artifacts["old"], split) for split in ("queries", "gallery")}
    runs = []
    for name in (*METHODS, UPGRADE):
        part = "ract" if name == UPGRADE else name
        arm = ArmVectors(
            name=name,
            queries=load_vectors(artifacts[part], "queries"),
            base=load_vectors(artifacts["adapter"], "gallery") if name == UPGRADE else old["gallery"],
            new=load_vectors(artifacts[part], "gallery"),
            prototypes=load_prototypes(artifacts[part])[0],
            temperature=temperature,
        )
        certified = name == UPGRADE
        curves = measure_arm(
            arm,
            old["queries"],
            old["gallery"],
            relevance,
            np.random.default_rng(seed),
            random_orders=random_orders,
            oracle=certified,
            average_precision=certified,
        )
        runs.append(_method_run(curves, detailed=certified))
    return SeedRun(seed=seed, old_old=curves.old_old, methods=tuple(runs))


def _method_run(curves: ArmCurves, *, detailed: bool) -> MethodRun:
    normalised = curves.normalised_area
    more: dict[str, Any] = {}
    if detailed:
        assert curves.oracle is not None
        more = {
            "map_curve": _map_curve(curves.entropy),
            "random_curve": _mean_recall(curves.random),
            "random_map_curve": _map_curve(curves.random[0]),
            "oracle_curve": _recall(curves.oracle),
            "oracle_map_curve": _map_curve(curves.oracle),
        }
    return MethodRun(
        name=curves.name,
        certified=curves.new_old >= curves.old_old and curves.lowest >= curves.old_old,
        new_old=curves.new_old,
        new_new=curves.new_new,
        curve=_recall(curves.entropy),
        nfr_curve=tuple(Point(p.coverage, p.flips.nfr or 0.0) for p in curves.entropy),
        pfr_curve=tuple(Point(p.coverage, p.flips.pfr or 0.0) for p in curves.entropy),
        area=curves.area,
        area_random=curves.area_random,
        normalised_area=NotRun("the new model gains nothing on the old one")
        if normalised is None
        else normalised,
        **more,
    )


def _recall(points: Sequence[CurvePoint]) -> Curve:
    return tuple(Point(p.coverage, p.r_at_1 or 0.0) for p in points)


def _mean_recall(orders: Sequence[Sequence[CurvePoint]]) -> Curve:
    return tuple(
        Point(same[0].coverage, float(np.mean([p.r_at_1 or 0.0 for p in same])))
        for same in zip(*orders, strict=True)
    )


def _map_curve(points: Sequence[CurvePoint]) -> Curve:
    return tuple(Point(p.coverage, p.mean_average_precision or 0.0) for p in points)


def certificate(row: CertificateRow, upgrade: str, query_model: str, gallery_model: str) -> Certificate:
    """A certificate as the report shows it."""
    measured = row.measured
    return Certificate(
        upgrade=upgrade,
        query_model=query_model,
        gallery_model=gallery_model,
        old_old=measured["old_old"],
        new_old=measured["new_old"],
        new_new=measured["new_new"],
        verdict=row.verdict,
        reason=row.reason,
    )


def rollout_story(context: Context, seen: live.Watched, audit: live.Audit) -> Rollout:
    """The real rollout, from the ledger and from what was seen."""
    row = rollouts.reread(context, seen.rollout_id)
    with transaction(context.engine) as connection:
        summary = read_view(connection, "flip_summary", rollout=row.id, k=1, slice="all")
        times = batch_queries.batch_times(connection, row.id)
    moments = [((t["committed_at"] - row.created_at).total_seconds(), t["n"]) for t in times]  # type: ignore[operator]
    busy_s = seen.finished_s - (moments[0][0] if moments else 0.0)
    assert seen.first_answer_s is not None
    return Rollout(
        first_answer_s=seen.first_answer_s,
        throughput_per_s=row.committed_items / max(busy_s, 1e-9),
        adapter_rate_per_s=seen.adapter_rate_per_s or NotRun("no adapter"),
        killed_worker=(
            KilledWorker(
                lost=audit.lost + audit.falsified,
                duplicated=audit.duplicated,
                killed_s=seen.killed_s,
                resumed_s=seen.resumed_s,
            )
            if seen.killed_s is not None
            else NotRun("the rollout was over before half of it was seen")
        ),
        throughput=_throughput(moments),  # type: ignore[arg-type]
        progress=tuple(seen.progress),
        events=tuple(TimelineEvent(at, text, mark) for at, text, mark in seen.events),
        measured=tuple(
            Point(s["coverage"], (s["both_right"] + s["positive_flips"]) / s["n"]) for s in summary
        ),
        measured_nfr=tuple(Point(s["coverage"], s["nfr"]) for s in summary),
        measured_pfr=tuple(Point(s["coverage"], s["pfr"]) for s in summary),
    )


def _throughput(
    moments: Sequence[tuple[float, int]], window_s: float = 0.5
) -> tuple[tuple[float, float], ...]:
    """Items per second in windows of half a second, zeros included: a gap after a kill is a gap."""
    if not moments:
        return ()
    edges = np.arange(0.0, moments[-1][0] + window_s, window_s)
    items, _ = np.histogram([at for at, _ in moments], bins=edges, weights=[n for _, n in moments])
    return tuple(
        (float(edge + window_s / 2), float(count / window_s))
        for edge, count in zip(edges, items, strict=False)
    )


def worst_flips(
    context: Context, row: RolloutRow, names: tuple[str, str], limit: int = 8
) -> tuple[Flip, ...]:
    """The negative flips in which the wrong answer scored highest, with the pictures of query and answers."""
    with transaction(context.engine) as connection:
        flips = read_view(
            connection,
            "flip_items",
            rollout=row.id,
            reference="old_system",
            kind="negative",
            k=1,
            limit=100_000,
        )
        coverage = {
            s["seq"]: s["coverage"]
            for s in read_view(connection, "flip_summary", rollout=row.id, k=1, slice="all", limit=100_000)
        }
        query_set = gallery_queries.query_sets_of_gallery(connection, row.gallery_id)[0]
        queries = {q.key: q for q in gallery_queries.queries_of_set(connection, query_set.id)}
        worst = sorted(flips, key=lambda f: (-f["new_score"], f["query"]))[:limit]
        keys = sorted({f[side] for f in worst for side in ("old_item", "new_item")})
        rows = gallery_queries.rows_of_keys(connection, row.gallery_id, keys)
        items = {
            i.key: i for i in gallery_queries.items_of_rows(connection, row.gallery_id, list(rows.values()))
        }

    def answer(flip: dict[str, Any], side: str, label: str | None) -> Answer:
        item = items[flip[f"{side}_item"]]
        return Answer(
            key=item.key,
            label=item.label,
            score=flip[f"{side}_score"],
            version=names[0] if side == "old" else names[1],
            right=item.label == label,
            picture=_picture(item.uri),
        )

    return tuple(
        Flip(
            query_key=f["query"],
            query_label=queries[f["query"]].label,
            query_picture=_picture(queries[f["query"]].uri),
            old=answer(f, "old", queries[f["query"]].label),
            new=answer(f, "new", queries[f["query"]].label),
            opened_at=coverage[f["opened_seq"]],
            healed_at=coverage[f["healed_seq"]] if f["healed_seq"] is not None else None,
            healed_after_s=(f["healed_at"] - f["opened_at"]).total_seconds() if f["healed_at"] else None,
        )
        for f in worst
    )


def _picture(uri: str) -> Any:
    from models.datasets import read_item

    content = read_item(uri)
    return None if isinstance(content, str) else content


def machine() -> Machine:
    """Where this runs."""
    import psutil

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return Machine(
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def versions() -> tuple[tuple[str, str], ...]:
    """Versions of what the figures depend on."""
    return tuple(
        (name, version(name))
        for name in ("hotrefresh", "torch", "numpy", "faiss-cpu", "celery", "sqlalchemy", "psycopg")
    )
