"""Downstream modules: trained or taken from a folder, registered, and measured with a new model's embeddings."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from orchestrator.artifacts import publish
from orchestrator.context import Context
from orchestrator.core.contracts import DEFAULT_MINIMUM, ModuleMeasurement, judge_module
from orchestrator.errors import ConflictError, NotCertifiedError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import downstream as queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ModelRow, ModuleCertificateRow, ModuleRow
from orchestrator.service.contracts import ask_again
from orchestrator.service.galleries import check_name
from orchestrator.service.models import keep_artifact, scratch
from orchestrator.service.names import find_gallery, find_model, find_module
from orchestrator.service.stored import floats_of_rows
from orchestrator.service.wakeups import relay
from orchestrator.serving.embedding import Progress, encode_uris, no_progress

if TYPE_CHECKING:
    from models.downstream import ClassificationHead, TextTower

F32 = npt.NDArray[np.float32]
KINDS = ("head", "text-tower")


@dataclass(frozen=True)
class TrainModuleRequest:
    """What to train on a model's embeddings of labelled items. `source`, `split`: as for a gallery; `kind`: one of KINDS."""

    name: str
    model: str
    source: str
    kind: str = "head"
    split: str | None = None
    steps: int = 600
    seed: int = 0


@dataclass(frozen=True)
class CertifyModuleRequest:
    """What to measure.

    Attributes:
        gallery: its labelled items are measured on. source, split: or those of a source.
        sample: at most so many of them, drawn at random.
        minimum: a mean of fewer pictures, or for a text tower of fewer texts, decides nothing.
        tolerance: over 0: an interval that reaches further below makes the verdict inconclusive.
        loss: of the module's metric, that is accepted.
    """

    module: str
    model: str
    gallery: str | None = None
    source: str | None = None
    split: str | None = None
    sample: int = 5000
    minimum: int = DEFAULT_MINIMUM
    tolerance: float = 0.0
    loss: float = 0.0
    seed: int = 0


def register_module(context: Context, folder: Path, name: str, model_name: str) -> ModuleRow:
    """Verify a module's artifact, keep and publish it as a model's, and register it as frozen, by its digest.

    Raises:
        ArtifactError: missing, tampered with, or no module.
        ConflictError: it was made for another model's embeddings, or the name is taken by another module.
    """
    from models import downstream

    check_name("downstream module", name)
    with transaction(context.engine) as connection:
        model = find_model(connection, model_name)
    manifest = downstream.verified_manifest(folder)
    if manifest.options.get("space_fingerprint") != model.fingerprint or manifest.dim != model.dim:
        raise ConflictError(
            f"the module in {folder} was not made for embeddings of {model.name!r}: it takes {manifest.dim} dimensions of "
            f"the space {str(manifest.options.get('space_fingerprint'))[:12]}, that model's is {model.fingerprint[:12]}. "
            "Name the model that it was made for with --model."
        )
    kept = keep_artifact(context, folder, manifest.fingerprint)
    files = publish(context.settings.extents, kept, manifest.fingerprint)
    metric = downstream.load(kept, expected=manifest.fingerprint).metric
    with transaction(context.engine) as connection:
        made = queries.insert_module(
            connection,
            name=name,
            model_id=model.id,
            architecture=manifest.architecture,
            metric=metric,
            dim=manifest.dim,
            digest=manifest.digest,
            fingerprint=manifest.fingerprint,
            uri=str(kept),
            files=files,
            manifest=asdict(manifest),
        )
        row = find_module(connection, name)
        if made is None and (row.fingerprint != manifest.fingerprint or row.retired_at is not None):
            what = "a retired" if row.retired_at is not None else "another"
            raise ConflictError(
                f"there is {what} downstream module {name!r} already (fingerprint {row.fingerprint[:12]}); "
                "choose another name."
            )
        if made is not None:
            rollout_queries.write_audit(
                connection,
                actor=context.actor,
                action="module.registered",
                target=name,
                after={"model": model.name, "digest": manifest.digest},
            )
    return row


def train_module(
    context: Context, request: TrainModuleRequest, progress: Progress = no_progress
) -> ModuleRow:
    """Fit a module on a model's embeddings of a source's labelled items, and register it.

    Raises:
        UsageError: no such kind, or items without labels or of one label only.
        ConflictError: the name is taken.
    """
    from models import downstream

    check_name("downstream module", request.name)
    if request.kind not in KINDS:
        raise UsageError(f"there is no kind {request.kind!r} of modules: choose one of {', '.join(KINDS)}.")
    with transaction(context.engine) as connection:
        model = find_model(connection, request.model)
        if queries.module_by_name(connection, request.name) is not None:
            raise ConflictError(
                f"there is a downstream module {request.name!r} already; choose another name."
            )
    uris, labels = _of_source(request.source, request.split, model)
    vectors, failed = encode_uris(context.encoder(model), uris, progress)
    good = [at for at in range(len(uris)) if at not in failed]
    known = [labels[at] for at in good]
    if len(set(known)) < 2:
        raise UsageError(
            f"{request.source!r} has {len(known)} labelled items of {len(set(known))} classes that can be read: "
            "a module needs two classes or more."
        )
    fit = downstream.fit_head if request.kind == "head" else downstream.fit_text_tower
    module = fit(vectors[good], known, steps=request.steps, seed=request.seed)
    with scratch(context) as folder:
        downstream.save(module, folder, request.name, model.fingerprint)
        return register_module(context, folder, request.name, model.name)


def retire_module(context: Context, name: str) -> ModuleRow:
    """Nobody uses it any more: it holds no rollout back. Its row and its certificates stay. Saying it twice changes nothing."""
    with transaction(context.engine) as connection:
        row = find_module(connection, name)
        if queries.retire_module(connection, row.id):
            rollout_queries.write_audit(connection, actor=context.actor, action="module.retired", target=name)
            ask_again(connection)
        row = find_module(connection, name)
    relay(context)
    return row


def certify_module(
    context: Context, request: CertifyModuleRequest, progress: Progress = no_progress
) -> ModuleCertificateRow:
    """Measure a frozen module with its own model's embeddings and with another's, of the same items, and store the verdict.

    Raises:
        ArtifactError: the module's bytes are not those that were registered.
        NotCertifiedError: it cannot take vectors of that dim.
        ConflictError: it is its own model, or it is retired.
        UsageError: not exactly one of gallery and source, or nothing with labels that the module knows.
    """
    with transaction(context.engine) as connection:
        row, new = find_module(connection, request.module), find_model(connection, request.model)
        own = model_queries.model_by_id(connection, row.model_id)
    _check_certifiable(row, own, new)
    module = context.module(row)
    old_vectors, new_vectors, labels, source = _measured_items(context, request, module, own, new, progress)
    old_scores, new_scores = module.scores(old_vectors, labels), module.scores(new_vectors, labels)
    measured, report = _measurement(old_scores, new_scores, request.seed)
    judgement = judge_module(measured, request.minimum, request.tolerance, request.loss)
    with transaction(context.engine) as connection:
        found = queries.insert_module_certificate(
            connection,
            module_id=row.id,
            model_id=new.id,
            fingerprint=row.fingerprint,
            source=source,
            n=measured.n,
            old_value=measured.old,
            new_value=measured.new,
            low=measured.difference.low if measured.difference else None,
            high=measured.difference.high if measured.difference else None,
            accepted_loss=request.loss,
            verdict=judgement.verdict.value,
            reason=judgement.reason,
            measured={**report, "items": len(labels), "tolerance": request.tolerance, "seed": request.seed},
        )
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action=f"module.{judgement.verdict.value}",
            target=f"{row.name} on {new.name}",
            after={"certificate": found.id, "digest": module.digest},
        )
        ask_again(connection)
    relay(context)
    return found


def _check_certifiable(row: ModuleRow, own: ModelRow, new: ModelRow) -> None:
    if row.retired_at is not None:
        raise ConflictError(f"downstream module {row.name!r} is retired: it asks nothing of any model.")
    if own.fingerprint == new.fingerprint:
        raise ConflictError(
            f"downstream module {row.name!r} was made for {new.name!r}; there is nothing to measure."
        )
    if new.dim != row.dim:
        raise NotCertifiedError(
            f"downstream module {row.name!r} takes {row.dim} dimensions and {new.name!r} emits {new.dim}: it cannot be used "
            f"with that model. Make an encoder that emits the space of {own.name!r}: "
            f"`hotrefresh model adapt-encoder NAME --new {new.name} --old {own.name} --data SOURCE`."
        )


def _measured_items(
    context: Context,
    request: CertifyModuleRequest,
    module: ClassificationHead | TextTower,
    own: ModelRow,
    new: ModelRow,
    progress: Progress,
) -> tuple[F32, F32, list[str], str]:
    """(n, d) float32 of both models of the same labelled items, their labels, and where they are from, in words."""
    if (request.gallery is None) == (request.source is None):
        raise UsageError("say what to measure on: --gallery GALLERY, or --data SOURCE; one of them.")
    if request.gallery is not None:
        return _of_gallery(context, request, module, own, new, progress)
    assert request.source is not None
    uris, labels = _of_source(request.source, request.split, new)
    known = [at for at, label in enumerate(labels) if module.knows(label)]
    chosen = _drawn(np.array(known, np.int64), request).tolist()
    _check_some(chosen, request.module, request.source)
    both = [
        encode_uris(context.encoder(model), [uris[at] for at in chosen], progress) for model in (own, new)
    ]
    unread = set(both[0][1]) | set(both[1][1])
    good = [place for place in range(len(chosen)) if place not in unread]
    _check_some(good, request.module, request.source)
    where = request.source + (f", split {request.split}" if request.split else "")
    return both[0][0][good], both[1][0][good], [labels[chosen[place]] for place in good], where


def _of_gallery(
    context: Context,
    request: CertifyModuleRequest,
    module: ClassificationHead | TextTower,
    own: ModelRow,
    new: ModelRow,
    progress: Progress,
) -> tuple[F32, F32, list[str], str]:
    """As `_measured_items`; what the gallery holds of either model is not embedded again."""
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, str(request.gallery))
        labels = dict(gallery_queries.labels_of_gallery(connection, gallery.id))
    rows = _drawn(np.array([r for r, label in labels.items() if module.knows(label)], np.int64), request)
    _check_some(rows, request.module, f"gallery {gallery.name}")
    old_vectors, unread = _vectors(context, gallery.name, own, rows, progress)
    new_vectors, more = _vectors(context, gallery.name, new, rows, progress)
    good = [place for place in range(len(rows)) if place not in unread | more]
    _check_some(good, request.module, f"gallery {gallery.name}")
    named = [labels[int(rows[place])] for place in good]
    return old_vectors[good], new_vectors[good], named, f"gallery {gallery.name}"


def _vectors(
    context: Context, gallery: str, model: ModelRow, rows: npt.NDArray[np.int64], progress: Progress
) -> tuple[F32, set[int]]:
    """(n, d) float32 of a model, of a codec what its codes stand for; and the places of items that cannot be read."""
    from models.codecs.coded import unit_codes

    floats, unread = floats_of_rows(context, gallery, context.base_of(model), rows, progress)
    return (floats if model.base_model_id is None else unit_codes(context.codec(model), floats)), unread


def _of_source(source: str, split: str | None, model: ModelRow) -> tuple[list[str], list[str]]:
    """URIs and labels of a source's labelled items. Raises UsageError where it holds something else than the model embeds."""
    from models.datasets import list_items, modality_of

    if (found := modality_of(source)) != model.modality:
        raise UsageError(f"{source!r} holds {found}s, {model.name!r} embeds {model.modality}s.")
    items = [(item.uri, item.label) for item in list_items(source, split).items if item.label is not None]
    return [uri for uri, _ in items], [label for _, label in items]


def _drawn(places: npt.NDArray[np.int64], request: CertifyModuleRequest) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(request.seed)
    return np.sort(rng.choice(places, min(request.sample, len(places)), replace=False))


def _check_some(found: Sized, module: str, where: str) -> None:
    if not len(found):
        raise UsageError(
            f"{where} has no readable item with a label that downstream module {module!r} knows. "
            "Measure it on labelled items of its classes: --gallery GALLERY or --data SOURCE."
        )


def _measurement(
    old: npt.NDArray[np.float64], new: npt.NDArray[np.float64], seed: int
) -> tuple[ModuleMeasurement, dict[str, object]]:
    """The means of (n,) paired scores with the interval of their difference, and what else a certificate keeps."""
    from orchestrator.core.significance import CONFIDENCE, RESAMPLES, mcnemar_p, mean_interval

    rng = np.random.default_rng([seed, 1])
    spans = {"old": mean_interval(old, rng), "new": mean_interval(new, rng)}
    difference = mean_interval(new - old, rng)
    worse, better = int((new < old).sum()), int((new > old).sum())
    return ModuleMeasurement(float(old.mean()), float(new.mean()), len(old), difference), {
        "intervals": {
            "method": "percentile bootstrap over paired values",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            **{name: asdict(span) for name, span in spans.items()},
            "difference": asdict(difference),
        },
        # A sign test where the values are not just right and wrong.
        "changes": {"worse": worse, "better": better, "p": mcnemar_p(worse, better)},
    }
