"""Backbones made here without labels: pre-trained on videos, then imported like any other model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.ledger.rows import ModelRow
from orchestrator.service.models import import_model, scratch
from orchestrator.service.training import (
    Progress,
    check_free,
    checkpoints_of,
    fair_threads,
    preprocessing_for,
)

RULES = ("sound", "published", "released")


@dataclass(frozen=True)
class PretrainRequest:
    """What to pre-train on, and how; None: as `PretrainingOptions` has it.

    Attributes:
        source, split: as for a gallery; labels are not looked at.
        rules: one of RULES; see models.pretraining.cstp_sampler.
        checkpoint, checkpoint_every, resume: as in TrainRequest.
    """

    name: str
    source: str
    split: str | None = None
    rules: str = "sound"
    width: int | None = None
    frames: int | None = None
    size: int | None = None
    mode: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    threads: int | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False


def pretrain_model(context: Context, request: PretrainRequest, progress: Progress | None = None) -> ModelRow:
    """Pre-train an r2plus1d encoder and register it.

    Raises:
        UsageError: a source or option that cannot be used, too few videos, or another training's checkpoint.
        ConflictError: the name is taken.
        ArtifactError: the checkpoint is damaged.
    """
    from models.datasets import list_items, modality_of
    from models.encoders.videos import VideoPreprocessing
    from models.pretraining import cstp_sampler
    from models.pretraining.cstp_training import PretrainingOptions, pretrain, read_videos

    check_free(context, request.name)
    kept = checkpoints_of(request)
    if request.rules not in RULES:
        raise UsageError(f"there are no rules {request.rules!r}; choose one of {', '.join(RULES)}.")
    if modality_of(request.source) != "video":
        raise UsageError(
            f"{request.source!r} holds {modality_of(request.source)}s; this is trained on videos, such as clips:FOLDER."
        )
    seen = preprocessing_for(
        "video", request.source, size=request.size, mode=request.mode, frames=request.frames
    )
    assert isinstance(seen, VideoPreprocessing)
    given = ("width", "epochs", "batch_size", "learning_rate")
    chosen = {name: value for name in given if (value := getattr(request, name)) is not None}
    rules = getattr(cstp_sampler, request.rules.upper())
    options = replace(PretrainingOptions(preprocessing=seen, rules=rules), **chosen)
    videos = read_videos(list_items(request.source, request.split).items, options.preprocessing)
    with scratch(context) as folder:
        pretrain(
            videos,
            folder,
            name=request.name,
            options=options,
            seed=request.seed,
            threads=request.threads or fair_threads(),
            progress=progress,
            checkpoints=kept,
        )
        return import_model(context, folder, request.name)
