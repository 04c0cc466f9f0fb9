"""Adapted encoders by command: a new encoder that answers in an old model's space, trained here and registered like any model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.rows import ModelRow
from orchestrator.service.models import import_model, scratch
from orchestrator.service.names import find_model, find_module
from orchestrator.service.training import check_free
from orchestrator.serving.embedding import Progress, no_progress

if TYPE_CHECKING:
    from models.downstream import TextTower
    from models.taca.training import AdaptOptions


@dataclass(frozen=True)
class AdaptRequest:
    """What to adapt. Options left None are those of `models.taca.training.AdaptOptions`.

    Attributes:
        new, old: the encoder that gets adapters (a vit), and the model whose space it shall emit.
        source, split: pictures, as for a gallery.
        texts: a registered text tower of the old model; what it makes of the pictures' labels is the contrast. None: there
            is none.
        rank: of each adapter; 0 with placement "none".
        contrast: lambda; None: 1 with texts, else 0.
    """

    name: str
    new: str
    old: str
    source: str
    split: str | None = None
    texts: str | None = None
    placement: str = "parallel"
    rank: int | None = None
    map_hidden: int = 0
    contrast: float | None = None
    temperature: float | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    threads: int | None = None


def adapt(context: Context, request: AdaptRequest, progress: Progress = no_progress) -> ModelRow:
    """Train adapters and map, and register the encoder that they make.

    Raises:
        UsageError: the new model is no vit, pictures or options that nothing can be trained with, labels that the tower does
            not know.
        ConflictError: the name is taken, or the text tower is another model's.
        ArtifactError: a model's or the tower's bytes are not those that were registered.
    """
    from models.datasets import list_items, modality_of
    from models.encoders.images import TorchImageEncoder
    from models.taca.training import adapt_encoder, adapted_network
    from models.training import read_pictures

    check_free(context, request.name)
    with transaction(context.engine) as connection:
        new, old = find_model(connection, request.new), find_model(connection, request.old)
    if new.fingerprint == old.fingerprint:
        raise UsageError(f"{new.name!r} emits the space of {old.name!r} already; there is nothing to adapt.")
    source, target = context.encoder(new), context.encoder(old)  # verified before an hour of training
    for model, encoder in ((new, source), (old, target)):
        if not isinstance(encoder, TorchImageEncoder):
            raise UsageError(
                f"{model.name!r} is a {model.architecture}: an encoder of pictures that was trained here is needed."
            )
    assert isinstance(source, TorchImageEncoder)
    options = _options(request)
    adapted_network(source, old.dim, options)  # says what cannot be adapted before any picture is read
    if modality_of(request.source) != "image":
        raise UsageError(f"{request.source!r} holds no pictures, which {new.name!r} embeds.")
    pictures = read_pictures(list_items(request.source, request.split).items, source.preprocessing)
    texts = None if request.texts is None else _tower(context, request.texts, old).encode(pictures.classes)
    with scratch(context) as folder:
        adapt_encoder(
            pictures,
            context.artifact(new),
            context.artifact(old),
            folder,
            name=request.name,
            texts=texts,
            options=options,
            seed=request.seed,
            threads=request.threads or max(1, os.cpu_count() or 1),
            progress=progress,
        )
        return import_model(context, folder, request.name)


def _options(request: AdaptRequest) -> AdaptOptions:
    from models.taca.training import MAP_ONLY, AdaptOptions

    contrast = request.contrast
    if contrast is None:
        contrast = 0.0 if request.texts is None else 1.0
    if contrast > 0 and request.texts is None:
        raise UsageError(
            f"a contrast of {contrast:g} needs texts: name a registered text tower of {request.old!r} with --texts, "
            "or leave --contrast out."
        )
    given = {
        "rank": 0 if request.rank is None and request.placement == MAP_ONLY else request.rank,
        "temperature": request.temperature,
        "epochs": request.epochs,
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
    }
    return AdaptOptions(
        placement=request.placement,
        map_hidden=request.map_hidden,
        contrast=contrast,
        **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def _tower(context: Context, name: str, old: ModelRow) -> TextTower:
    from models.downstream import TextTower

    with transaction(context.engine) as connection:
        row = find_module(connection, name)
    module = context.module(row)
    if not isinstance(module, TextTower):
        raise UsageError(
            f"downstream module {name!r} is a {row.architecture} and encodes no texts; name a text tower, "
            "or leave --texts out."
        )
    if row.model_id != old.id:
        raise ConflictError(f"text tower {name!r} was not made for embeddings of {old.name!r}.")
    return module
