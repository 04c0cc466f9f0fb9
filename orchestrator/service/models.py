"""Models and adapters: into the registry, verified; fitted on pairs of stored and new embeddings."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifact import Manifest, copy_artifact
from orchestrator.artifacts import folder_name, publish
from orchestrator.context import Context
from orchestrator.errors import ArtifactError, ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import AdapterRow, ModelRow
from orchestrator.service.galleries import check_name
from orchestrator.service.modalities import check_embeddable
from orchestrator.service.names import find_gallery, find_model
from orchestrator.serving.embedding import encode_uris
from orchestrator.serving.matrix import load_matrix
from orchestrator.store.local import sync_folder

Progress = Callable[[int, int], None]
# The demo's (models.recipes): a smaller net and a warmer contrast than for plain pairs.
VIEW_OPTIONS = {"hidden": 384, "steps": 800, "temperature": 0.1}


def import_model(context: Context, folder: Path, name: str, *, own_code: bool = False) -> ModelRow:
    """Verify an artifact, copy it under its fingerprint into the model folder, and register it.

    `own_code`: the artifact may name Python code to call, because the person who imports it named that code.

    Raises:
        ArtifactError: missing, tampered with, or of an unknown format.
        ConflictError: the name is taken by another model (the same one again is done already).
    """
    from models.encoders import load_encoder

    check_name("model", name)
    manifest = load_encoder(folder, own_code=own_code).manifest
    return register(context, name, manifest, folder)


def register(
    context: Context, name: str, manifest: Manifest, folder: Path, *, base: ModelRow | None = None
) -> ModelRow:
    """Keep and publish a verified artifact, and write it into the ledger.

    Args:
        base: of a codec, the model whose embeddings it encodes.

    Raises:
        ArtifactError: it was changed since its manifest was read.
        ConflictError: the name is taken by another model (the same one again is done already).
    """
    kept = keep_artifact(context, folder, manifest.fingerprint)
    files = publish(context.settings.extents, kept, manifest.fingerprint)
    with transaction(context.engine) as connection:
        model_id = model_queries.insert_model(
            connection,
            name=name,
            modality=manifest.modality,
            architecture=manifest.architecture,
            dim=manifest.dim,
            digest=manifest.digest,
            fingerprint=manifest.fingerprint,
            uri=str(kept),
            files=files,
            manifest=asdict(manifest),
            base_model_id=None if base is None else base.id,
        )
        if model_id is None:
            row = find_model(connection, name)
            if row.fingerprint != manifest.fingerprint:
                raise ConflictError(
                    f"there is another model {name!r} already (fingerprint {row.fingerprint[:12]}); choose another name."
                )
            return row
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="model.imported" if base is None else "codec.imported",
            target=name,
            after={"fingerprint": manifest.fingerprint},
        )
        return find_model(connection, name)


@contextmanager
def scratch(context: Context) -> Iterator[Path]:
    """A folder name beside the artifacts, gone afterwards: what is imported from it is copied."""
    folder = context.settings.artifacts / f".new-{secrets.token_hex(6)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_artifact(context: Context, folder: Path, fingerprint: str) -> Path:
    """Copy an artifact's two files into the model folder, under its fingerprint; what is there already stays.

    Raises ArtifactError where the artifact was changed since `fingerprint` was read, or cannot be copied.
    """
    kept = context.settings.artifacts / folder_name(fingerprint)
    if not kept.exists():
        partial = context.settings.artifacts / f".partial-{secrets.token_hex(6)}"
        try:
            if copy_artifact(folder, partial).fingerprint != fingerprint:
                raise ArtifactError(f"{folder} was changed while it was imported; import it again.")
            partial.rename(kept)
            sync_folder(kept.parent)
        except OSError as error:
            if not kept.exists():  # another import of the same artifact may have been first
                raise UsageError(f"{folder} cannot be copied to {kept}: {error.strerror}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return kept


def verify_model(context: Context, name: str) -> ModelRow:
    """Load a model with all checks; raises ArtifactError when it is not what was registered."""
    with transaction(context.engine) as connection:
        row = find_model(connection, name)
    context.encoder(row)
    return row


@dataclass(frozen=True)
class PairedSample:
    """Random items of a gallery in both models: (p, d_old) and (p, d_new) float32, where they are, and their labels."""

    old: npt.NDArray[np.float32]
    new: npt.NDArray[np.float32]
    uris: tuple[str, ...]
    labels: tuple[str | None, ...]


def paired_sample(
    context: Context,
    old: ModelRow,
    new: ModelRow,
    gallery_name: str,
    pairs: int,
    seed: int,
    progress: Progress,
) -> PairedSample:
    """Stored embeddings of a gallery's random items, and the new model's of the same items.

    Raises:
        ConflictError: the gallery does not hold embeddings of the old model, or items that the new model cannot embed.
    """
    with context.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        gallery = find_gallery(connection, gallery_name)
        holder = rollout_queries.newest_holder(connection, gallery.id)
        if holder is None or holder.to_model_id != old.id:
            raise ConflictError(
                f"gallery {gallery.name!r} does not hold embeddings of {old.name!r}; pairs need them."
            )
        check_embeddable(connection, gallery, new)
        matrix = load_matrix(connection, gallery.id)
        have = np.flatnonzero(matrix.version)
        rows = np.sort(np.random.default_rng(seed).choice(have, min(pairs, len(have)), replace=False))
        found = gallery_queries.uris_of_rows(connection, gallery.id, rows.tolist(), new.modality)
        labels = dict(gallery_queries.labels_of_gallery(connection, gallery.id))
    uris = [uri or "" for uri in found]
    vectors, failed = encode_uris(context.encoder(new), uris, progress)
    good = [place for place in range(len(rows)) if place not in failed]
    kept = [int(rows[place]) for place in good]
    return PairedSample(
        matrix.vectors[kept],
        vectors[good],
        tuple(uris[place] for place in good),
        tuple(labels.get(row) for row in kept),
    )


def composite_views(
    context: Context,
    old: ModelRow,
    new: ModelRow,
    uris: Sequence[str],
    views: int,
    seed: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Both models' embeddings of augmented composites of these pictures; None where a model is not a network of ours."""
    from models.adapters.pairs import embed_pairs
    from models.augmentation import Augmentation
    from models.datasets import read_item
    from models.encoders.images import TorchImageEncoder

    first, second = context.encoder(old), context.encoder(new)
    if not (isinstance(first, TorchImageEncoder) and isinstance(second, TorchImageEncoder)):
        return None
    if {first.modality, second.modality} != {"image"}:  # composites are of pictures
        return None
    pixels = np.stack([second.preprocess(read_item(uri)) for uri in uris])
    return embed_pairs(
        context.artifact(old),
        context.artifact(new),
        pixels,
        views,
        Augmentation(),
        seed=seed,
        progress=progress,
    )


def fit_adapter(
    context: Context,
    old_name: str,
    new_name: str,
    gallery_name: str,
    *,
    name: str,
    method: str = "mlp",
    pairs: int = 10_000,
    views: int = 10_000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    query_side: bool = False,
    progress: Progress = lambda done, total: None,
) -> AdapterRow:
    """Fit an adapter on a paired sample of a gallery and register it.

    It leads from the old model to the new one, or, on the query side, from the new one to the old. Where the target
    model stores its classifier and the gallery has labels of its classes, the adapter may learn from them.

    Args:
        pairs: items sampled; their stored embeddings and the new model's are the pairs.
        views: for mlp between image networks of ours: augmented composites of the sampled pictures, seen by both
            models, instead of the pairs as they are; they show the adapter more of both spaces. 0: never.
        options: the method's own.

    Raises:
        UsageError: no such method, or too few pairs to fit anything.
    """
    import models.adapters as adapters

    check_name("adapter", name)
    with transaction(context.engine) as connection:
        old, new = find_model(connection, old_name), find_model(connection, new_name)
    sample = paired_sample(context, old, new, gallery_name, pairs, seed, progress)
    source, target = (new, old) if query_side else (old, new)
    labels: npt.NDArray[np.int64] | None = _class_places(target, sample.labels)
    pair, chosen = (sample.old, sample.new), dict(options or {})
    if method == "mlp" and views and len(sample.uris) >= adapters.LEAST_PAIRS:
        seen = composite_views(context, old, new, sample.uris, views, seed, progress)
        if seen is not None:
            pair, labels, chosen = seen, None, {**VIEW_OPTIONS, **chosen}
    with scratch(context) as folder:
        adapters.fit_adapter(
            method,
            *(pair[::-1] if query_side else pair),
            folder=folder,
            name=name,
            modality=new.modality,
            source_fingerprint=source.fingerprint,
            target_fingerprint=target.fingerprint,
            seed=seed,
            prototypes=context.prototypes(target),
            labels=labels,
            options=chosen,
            progress=progress,
        )
        return import_adapter(context, folder, name, source, target)


def _class_places(model: ModelRow, labels: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """(n,) int64: the row of each label among the model's stored prototypes, -1 where it has none."""
    classes = model.manifest.get("training", {}).get("classes", ())
    place = {name: number for number, name in enumerate(classes)}
    return np.array([-1 if label is None else place.get(label, -1) for label in labels], np.int64)


def import_adapter(context: Context, folder: Path, name: str, old: ModelRow, new: ModelRow) -> AdapterRow:
    """Verify and register an adapter that leads from `old` to `new`.

    Raises:
        ConflictError: it was fitted for other models, or the name is taken.
    """
    from models.adapters import load_adapter

    check_name("adapter", name)
    manifest = load_adapter(folder).manifest
    wanted = {"source_fingerprint": old.fingerprint, "target_fingerprint": new.fingerprint}
    if {key: manifest.options.get(key) for key in wanted} != wanted:
        raise ConflictError(
            f"the adapter in {folder} was not fitted to lead from {old.name!r} to {new.name!r}."
        )
    kept = keep_artifact(context, folder, manifest.fingerprint)
    files = publish(context.settings.extents, kept, manifest.fingerprint)
    with transaction(context.engine) as connection:
        adapter_id = model_queries.insert_adapter(
            connection,
            name=name,
            source_model_id=old.id,
            target_model_id=new.id,
            digest=manifest.digest,
            fingerprint=manifest.fingerprint,
            uri=str(kept),
            files=files,
            manifest=asdict(manifest),
        )
        if adapter_id is None:
            raise ConflictError(f"there is an adapter {name!r} already; choose another name.")
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="adapter.imported",
            target=name,
            after={"from": old.name, "to": new.name},
        )
        row = model_queries.adapter_by_name(connection, name)
    assert row is not None
    return row
