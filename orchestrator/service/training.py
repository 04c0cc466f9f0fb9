"""Models made here: trained on pictures or videos, or written from what is installed; each is then imported like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import ModelRow
from orchestrator.service.galleries import check_name
from orchestrator.service.models import import_adapter, import_model, scratch
from orchestrator.service.names import find_model

if TYPE_CHECKING:
    from models.encoders.images import ImagePreprocessing
    from models.training import Checkpoints, TrainingOptions
    from orchestrator.service.pretraining import PretrainRequest

Progress = Callable[[int, int], None]

# Enough steps for a folder of a few hundred pictures; a large source has them in five epochs anyway.
LEAST_STEPS = 400
LEAST_EPOCHS = 5.0
PHOTO_EDGE = 64
CLIP_EDGE, CLIP_FRAMES = 56, 8
# What made upgrades certifiable in the demo (models.recipes): wide embeddings and a warm head, which keep more of a
# picture than telling the training classes apart needs, so that the embeddings can be adapted later.
DIM = 128
FIRST_TEMPERATURE, NEXT_TEMPERATURE = 0.15, 0.1


@dataclass(frozen=True)
class TrainRequest:
    """What to train. Fields left None are chosen from the old model, then from the source.

    Attributes:
        source, split: as for a gallery.
        method: a compatible-training method; all but "independent" need `old`. method_options: its own, over the recipe's.
        architecture: None: the usual one of what the source holds.
        network: the architecture's own options.
        init: name of a model of the same architecture whose weights are begun with, such as a pre-trained one.
        size: edge of the input, pixels.
        frames: of a clip that are looked at.
        mode: "L" (grey) or "RGB".
        epochs: passes over the pictures; None: enough for LEAST_STEPS steps.
        threads: CPU threads of each process; None: all cores, shared out among the machine's processes.
        precision: see models.parallel.Processes.
        checkpoint: folder that the training is kept in; None: it cannot be resumed.
        checkpoint_every: steps from one checkpoint to the next; None: ten minutes.
        resume: go on from the folder's checkpoint, where it has one.
    """

    name: str
    source: str
    split: str | None = None
    method: str = "independent"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    old: str | None = None
    seed: int = 0
    architecture: str | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    dim: int | None = None
    size: int | None = None
    frames: int | None = None
    mode: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    threads: int | None = None
    precision: str | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False


def train_model(context: Context, request: TrainRequest, progress: Progress | None = None) -> ModelRow:
    """Train an image or video encoder and register it. Under torchrun for process 0; the others call `join_training`.

    Raises:
        UsageError: a source, method or option that cannot be used, too few pictures, or another training's checkpoint.
        ConflictError: the name is taken.
        NotFoundError: no such old model, or none to begin with.
        ArtifactError: the old model or the checkpoint is damaged.
    """
    from models.compat import create_method
    from models.datasets import modality_of
    from models.parallel import Processes

    check_free(context, request.name)
    checkpoints_of(request)
    needs_old = bool(create_method(request.method, request.method_options).needs)
    if needs_old and request.old is None:
        raise UsageError(
            f"method {request.method!r} trains against an older model: name it with --old, or use --method independent."
        )
    if modality_of(request.source) == "text":
        raise UsageError(
            f"{request.source!r} holds texts; image and video encoders are trained. "
            f"Take a text encoder with `hotrefresh model import {request.name} --wordllama 64`."
        )
    old = _find(context, request.old) if request.old else None
    forward = _forward_name(context, request)
    if old is not None:
        context.encoder(old)  # a tampered artifact shows before an hour of training
    artifact = context.artifact(old).resolve() if old is not None else None
    first = context.artifact(_find(context, request.init)).resolve() if request.init else None
    Processes(context.settings.device).share_text(json.dumps([str(each or "") for each in (artifact, first)]))
    with scratch(context) as folder, scratch(context) as along:
        _train(
            request, artifact, first, folder, context.settings.device, progress, along if forward else None
        )
        row = import_model(context, folder, request.name)
        if forward and old is not None:
            import_adapter(context, along, forward, old, row)
        return row


def _forward_name(context: Context, request: TrainRequest) -> str | None:
    """The name of the forward adapter that the method trains along; None for a method without one.

    Raises ConflictError where the name is taken: said before an hour of training.
    """
    from models.compat import CompatMethod, create_method

    method = create_method(request.method, request.method_options)
    if type(method).forward_module is CompatMethod.forward_module:
        return None
    name = f"{request.old}-to-{request.name}"
    with transaction(context.engine) as connection:
        if model_queries.adapter_by_name(connection, name) is not None:
            raise ConflictError(
                f"there is an adapter {name!r} already, and {request.method!r} trains one of that name along; "
                "choose another name for the model."
            )
    return name


def join_training(request: TrainRequest, device: str) -> None:
    """Train along with the process that runs `train_model`: without a ledger, and nothing is written.

    Under torchrun, for every process but number 0. `device`: the settings' device.
    """
    from models.parallel import Processes

    told = [Path(each) if each else None for each in json.loads(Processes(device).share_text(None))]
    _train(request, told[0], told[1], Path(), device, None)


def _train(
    request: TrainRequest,
    old: Path | None,
    init: Path | None,
    folder: Path,
    device: str,
    progress: Progress | None,
    adapter_folder: Path | None = None,
) -> None:
    """Train into `folder`. `old`, `init`: artifacts of the old model, and of the one whose weights are begun with."""
    from models.artifact import load_manifest
    from models.compat import create_method
    from models.datasets import list_items
    from models.training import read_pictures, train_encoder

    listing = list_items(request.source, request.split)
    like = old or init
    options = _options(request, load_manifest(like).preprocessing if like is not None else {})
    pictures = read_pictures(listing.items, options.preprocessing)
    train_encoder(
        pictures,
        folder,
        name=request.name,
        method=request.method,
        old=old if create_method(request.method, request.method_options).needs else None,
        options=_sized(options, request, len(pictures.labels)),
        seed=request.seed,
        threads=request.threads or fair_threads(),
        progress=progress,
        device=device,
        precision=request.precision,
        checkpoints=checkpoints_of(request),
        adapter_folder=adapter_folder,
        init=init,
    )


def checkpoints_of(request: TrainRequest | PretrainRequest) -> Checkpoints | None:
    """Where a training is kept; None: nowhere. Raises UsageError for options of a folder that is not named."""
    from models.training import Checkpoints

    if request.checkpoint is not None:
        return Checkpoints(request.checkpoint, every_steps=request.checkpoint_every, resume=request.resume)
    if request.resume or request.checkpoint_every is not None:
        raise UsageError("--resume and --checkpoint-every need a folder: name it with --checkpoint.")
    return None


def fair_threads() -> int:
    """The machine's cores, shared out among the processes that train on it."""
    from models.parallel import local_size

    return max(1, (os.cpu_count() or 1) // local_size())


def _options(request: TrainRequest, like: Mapping[str, Any]) -> TrainingOptions:
    """`like`: the preprocessing of the old model, or of the one that is begun with, or nothing."""
    from models.augmentation import Augmentation
    from models.encoders import check_network
    from models.recipes import METHOD_OPTIONS
    from models.training import TrainingOptions

    architecture, modality = _architecture(request)
    characters = request.source.partition(":")[0] in ("glyphs", "moving-glyphs")
    preprocessing = preprocessing_for(
        modality, request.source, size=request.size, mode=request.mode, frames=request.frames, like=like
    )
    check_network(architecture, request.network, request.dim or DIM, preprocessing)
    return TrainingOptions(
        architecture=architecture,
        network=request.network,
        dim=request.dim or DIM,
        temperature=FIRST_TEMPERATURE if request.method == "independent" else NEXT_TEMPERATURE,
        method_options={**METHOD_OPTIONS[request.method], **request.method_options},
        preprocessing=preprocessing,
        augmentation=Augmentation() if characters else Augmentation(flip=True),
    )


def _architecture(request: TrainRequest) -> tuple[str, str]:
    """With the modality of what it is trained on. Raises UsageError for one that does not go with the source."""
    from models.datasets import modality_of
    from models.encoders import TRAINABLE

    modality = modality_of(request.source)
    fitting = TRAINABLE.get(modality, ())
    architecture = request.architecture or next(iter(fitting), "")
    if architecture not in fitting:
        raise UsageError(
            f"architecture {architecture!r} cannot be trained on {modality}s; choose one of {', '.join(fitting)}."
        )
    return architecture, modality


def preprocessing_for(
    modality: str,
    source: str,
    *,
    size: int | None = None,
    mode: str | None = None,
    frames: int | None = None,
    like: Mapping[str, Any] | None = None,
) -> ImagePreprocessing:
    """What was asked for, else as `like`, another model's, says, else by the source; of videos a VideoPreprocessing.

    Raises UsageError for values that cannot be.
    """
    from models.encoders.images import ImagePreprocessing
    from models.encoders.videos import VideoPreprocessing

    other = like or {}
    drawn = source.partition(":")[0] in ("glyphs", "moving-glyphs")
    usual = CLIP_EDGE if modality == "video" else 32 if drawn else PHOTO_EDGE
    if frames is not None and modality != "video":
        raise UsageError(f"{source[:200]!r} holds {modality}s; --frames is for videos, leave it out.")
    edge, colours = size or other.get("size") or usual, mode or other.get("mode") or ("L" if drawn else "RGB")
    fill = int(other.get("fill", 0))
    try:
        if modality == "video":
            count = frames or other.get("frames") or CLIP_FRAMES
            return VideoPreprocessing(int(edge), str(colours), fill, int(count))
        return ImagePreprocessing(size=int(edge), mode=str(colours), fill=fill)
    except ValueError:
        what = f"{modality}s of {edge} pixels, mode {colours!r}" + (f", {frames} frames" if frames else "")
        limits = "the edge must be 4 to 1024, the mode L or RGB" + (
            ", frames 1 to 64" if modality == "video" else ""
        )
        raise UsageError(f"{what}: {limits}.".replace("images", "pictures")) from None


def _sized(options: TrainingOptions, request: TrainRequest, n: int) -> TrainingOptions:
    """Batch, epochs and rate for `n` pictures."""
    from models.parallel import world_size

    batch = options.batch_size if n >= 4096 else max(2, min(64, n // 2))
    batch = request.batch_size or max(world_size(), batch - batch % world_size())  # shared out evenly
    epochs = request.epochs or max(LEAST_EPOCHS, LEAST_STEPS * batch / n)
    return replace(
        options, batch_size=batch, epochs=epochs, learning_rate=request.learning_rate or options.learning_rate
    )


def import_wordllama(context: Context, name: str, dims: int) -> ModelRow:
    """Register the first `dims` dimensions of the installed wordllama. Raises UsageError where it is not installed."""
    from models.encoders import architecture_module

    with scratch(context) as folder:
        architecture_module("wordllama").create(folder, name, dims)
        return import_model(context, folder, name)


def import_minilm(context: Context, name: str) -> ModelRow:
    """Register the installed MiniLM. Raises UsageError where it is not installed."""
    from models.encoders import architecture_module

    with scratch(context) as folder:
        architecture_module("minilm").create(folder, name)
        return import_model(context, folder, name)


def import_factory(context: Context, name: str, factory: str, options: Mapping[str, Any]) -> ModelRow:
    """Register a user's own encoder, `module:factory` called with `options`."""
    from models.encoders import architecture_module

    with scratch(context) as folder:
        architecture_module("factory").create(folder, name, factory, options)
        return import_model(context, folder, name, own_code=True)


def check_free(context: Context, name: str) -> None:
    """Raises ConflictError where there is a model of that name, UsageError for one that cannot be given."""
    check_name("model", name)
    with transaction(context.engine) as connection:
        if model_queries.model_by_name(connection, name) is not None:
            raise ConflictError(
                f"there is a model {name!r} already; choose another name, or look at `hotrefresh model show {name}`."
            )


def _find(context: Context, name: str) -> ModelRow:
    with transaction(context.engine) as connection:
        return find_model(connection, name)
