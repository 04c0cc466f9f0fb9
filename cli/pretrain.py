"""`hotrefresh model pretrain`: a video backbone without labels."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import (
    SOURCE_HELP,
    Checkpoint,
    CheckpointEvery,
    Resume,
    Seed,
    Split,
    Threads,
)  # fmt: skip
from cli.output import Format, Output, show
from cli.progress import progress
from cli.session import next_step, open_ledger, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh model pretrain base --data moving-glyphs --split train")(pretrain)


def pretrain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    data: Annotated[str, typer.Option(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    rules: Annotated[
        str, typer.Option(help="Of the sampler: sound, published or released (docs/VIDEO.md).")
    ] = "sound",
    width: Annotated[
        int | None, typer.Option(min=1, max=128, help="Of the network; 64 as released (default 8, for CPUs).")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Of a clip (default 8).")] = None,
    size: Annotated[int | None, typer.Option(help="Edge of the input in pixels (default 56).")] = None,
    mode: Annotated[str | None, typer.Option(help="L (grey) or RGB.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Passes over the videos (default 30).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs a step (default 16).")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-7, help="At its peak.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
    output: Output = Format.TABLE,
) -> None:
    """Pre-train a video encoder on overlap rates (CSTP), without labels, and register it. Train with --init NAME afterwards."""
    from orchestrator.service.pretraining import PretrainRequest, pretrain_model

    request = PretrainRequest(
        name=name,
        source=data,
        split=split,
        rules=rules,
        width=width,
        frames=frames,
        size=size,
        mode=mode,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    with open_ledger() as context, progress(f"pre-training {name}", "steps") as update:
        row = pretrain_model(context, request, update)
    if not show(row, output):
        training = row.manifest["training"]
        say(
            f"model {row.name}: {row.modality}s, {row.architecture}, {row.dim} dimensions, "
            f"{training['clips']} clips in {training['seconds']:.0f} s"
        )
    next_step(f"model train NAME --init {name} --data {data}" + (f" --split {split}" if split else ""))
