"""Codecs: fitted on stored embeddings, registered as models of their base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifact import Manifest
from models.codecs.coded import unit_codes
from orchestrator.context import Context
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import CertificateRow, ModelRow
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.service.galleries import check_name
from orchestrator.service.models import register, scratch
from orchestrator.service.names import find_codec, find_gallery, find_model
from orchestrator.service.stored import floats_of_rows, holder_of
from orchestrator.serving.embedding import Progress, no_progress

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
LEAST_ITEMS = 64
NOISE = 0.3
"""Length of the random vector that is added to an embedding where no label says what belongs together."""


@dataclass(frozen=True)
class TrainCodecRequest:
    """What to fit.

    Attributes:
        model: whose embeddings are encoded; None: the model whose embeddings the gallery holds.
        bits: a dimension; None: 3, or those of `like`. width: dimensions; None: those of the model, or of `like`.
        like: an older codec whose stored codes the new one shall search.
        sample: items of the gallery that are looked at.
        options: the method's own.
    """

    name: str
    gallery: str
    model: str | None = None
    method: str = "rotation"
    bits: int | None = None
    width: int | None = None
    like: str | None = None
    sample: int = 50_000
    seed: int = 0
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pairs:
    """(p, d) float32 anchors and what belongs to them, with (p,) int64 identities; `places`: (p,) int64, the positives' items."""

    anchors: F32
    positives: F32
    identities: I64
    places: I64
    kind: str


def train_codec(context: Context, request: TrainCodecRequest, progress: Progress) -> ModelRow:
    """Fit a codec on a gallery's embeddings, without reading an item where they are stored, and register it.

    Raises:
        ConflictError: the gallery holds nothing of the model that it could learn from, or the name is taken.
        UsageError: no such method or option, too few items, or codes of another width than those of `like`.
    """
    import models.codecs as codecs

    check_name("model", request.name)
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, request.gallery)
        like = find_codec(connection, request.like) if request.like else None
        base = (
            find_model(connection, request.model)
            if request.model
            else holder_of(connection, gallery, floats=True)
        )
        if base.base_model_id is not None:
            raise UsageError(
                f"{base.name!r} is a codec itself; name the model whose embeddings shall be encoded."
            )
    width, loops = _shape(request, base, like)
    floats, labels, rows = _sampled(context, request, base, progress)
    rng = np.random.default_rng(request.seed)
    pairs = make_pairs(floats, labels, rng)
    old = None
    if like is not None:
        old_floats, _ = floats_of_rows(context, request.gallery, context.base_of(like), rows, progress)
        old = unit_codes(context.codec(like), old_floats)[pairs.places]
    with scratch(context) as folder:
        codecs.fit_codec(
            request.method,
            pairs.anchors,
            pairs.positives,
            pairs.identities,
            width=width,
            loops=loops,
            old_positives=old,
            folder=folder,
            name=request.name,
            modality=base.modality,
            source_fingerprint=base.fingerprint,
            seed=request.seed,
            options=request.options,
            progress=progress,
        )
        return import_codec(context, folder, request.name, base)


def import_codec(context: Context, folder: Path, name: str, base: ModelRow) -> ModelRow:
    """Verify and register a codec of a model's embeddings.

    Raises:
        ArtifactError: missing, tampered with, or of an unknown format.
        ConflictError: it was fitted for another model, or the name is taken.
    """
    from models.codecs import load_codec

    check_name("model", name)
    manifest: Manifest = load_codec(folder).manifest
    if manifest.options.get("source_fingerprint") != base.fingerprint:
        raise ConflictError(f"the codec in {folder} was not fitted on embeddings of {base.name!r}.")
    return register(context, name, manifest, folder, base=base)


def import_codec_of(context: Context, folder: Path, name: str, model: str) -> ModelRow:
    """`import_codec` for a model by its name."""
    with transaction(context.engine) as connection:
        base = find_model(connection, model)
    return import_codec(context, folder, name, base)


def certify_codec(
    context: Context,
    name: str,
    gallery_name: str,
    *,
    query_set: str | None = None,
    sample: int = 5000,
    minimum_queries: int = 100,
    loss: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> CertificateRow:
    """Measure a codec against what a gallery holds, floats of its base model or codes of another codec: see `CertifyRequest`.

    Raises:
        NotCertifiedError: they cannot stand beside each other.
        ConflictError: the gallery holds this codec's own codes, or nothing.
    """
    with transaction(context.engine) as connection:
        gallery, codec = find_gallery(connection, gallery_name), find_codec(connection, name)
        old = holder_of(connection, gallery)
        if old.id == codec.id:
            raise ConflictError(
                f"gallery {gallery.name!r} holds codes of {name!r} already; there is nothing to compare."
            )
    request = CertifyRequest(
        old=old.name,
        new=name,
        gallery=gallery_name,
        query_set=query_set,
        sample=sample,
        minimum_queries=minimum_queries,
        seed=seed,
        loss=loss,
    )
    return certify(context, request, progress)


def make_pairs(floats: F32, labels: Sequence[str | None], rng: np.random.Generator) -> Pairs:
    """What a codec learns from: items of one label, or, where labels say nothing, each item beside a noisy copy of itself."""
    n = len(floats)
    names = {
        name: number for number, name in enumerate(sorted({label for label in labels if label is not None}))
    }
    # An item without a label is a class of its own.
    identities = np.array(
        [names[label] if label is not None else len(names) + at for at, label in enumerate(labels)]
    )
    order = np.argsort(identities + rng.random(n), kind="stable")
    followers = np.roll(order, -1)
    same = identities[order] == identities[followers]
    if np.count_nonzero(same) >= max(LEAST_ITEMS, n // 4):
        first, second = order[same], followers[same]
        return Pairs(floats[first], floats[second], identities[first].astype(np.int64), second, "labels")
    moved = floats + NOISE / np.sqrt(floats.shape[1]) * rng.standard_normal(floats.shape, np.float32)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return Pairs(floats, moved.astype(np.float32), np.arange(n), np.arange(n), "noise")


def _shape(request: TrainCodecRequest, base: ModelRow, like: ModelRow | None) -> tuple[int, int]:
    """Width and loops of the codes."""
    old = like.code_shape if like is not None else None
    width = request.width or (old.width if old else base.dim)
    if old is not None and width != old.width:
        raise UsageError(
            f"codes of {old.width} dimensions, as {request.like!r} makes them, cannot be searched by codes of {width}; "
            "leave --width out."
        )
    bits = request.bits or (old.bits if old else 3)
    return width, bits - 1


def _sampled(
    context: Context, request: TrainCodecRequest, base: ModelRow, progress: Progress
) -> tuple[F32, list[str | None], I64]:
    """Embeddings of random items, their labels, and their rows, rising."""
    with context.engine.connect() as connection:
        gallery = find_gallery(connection, request.gallery)
        labels = dict(gallery_queries.labels_of_gallery(connection, gallery.id))
        n = gallery.n_items
    rng = np.random.default_rng([request.seed, 1])
    rows = np.sort(rng.choice(n, min(request.sample, n), replace=False)).astype(np.int64)
    floats, _ = floats_of_rows(context, request.gallery, base, rows, progress)
    there = floats.any(axis=1)
    rows, floats = rows[there], floats[there]
    if len(rows) < LEAST_ITEMS:
        raise UsageError(
            f"{len(rows)} items with embeddings are too few for a codec; it needs {LEAST_ITEMS}."
        )
    return floats, [labels.get(int(row)) for row in rows], rows
