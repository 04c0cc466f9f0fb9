"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.0, metavar="SECONDS", help="Stop waiting after this time (exit 9); the work goes on."),
]
Reason = Annotated[str | None, typer.Option(help="Kept in the audit trail.")]
Split = Annotated[str | None, typer.Option(help="A part of a built-in dataset, such as gallery or queries.")]
Modality = Annotated[
    str | None,
    typer.Option(
        metavar="MODALITY",
        help="image, text or video, of a source that holds several (a manifest, ptvd:FOLDER).",
    ),
]
GalleryName = Annotated[str, typer.Argument(metavar="GALLERY", help="The gallery's name.")]
RolloutName = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="A rollout's id, GALLERY or GALLERY@latest.")
]
Limit = Annotated[int, typer.Option(min=1, help="At most this many rows.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
# Of trainings.
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep the training here, so that it can go on after a crash."),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(min=1, metavar="STEPS", help="From one checkpoint to the next (default: ten minutes)."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint, where it holds one.")]
Loss = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Of recall at 1, that is accepted (default 0, and of a codec 0.01: codes are smaller, not better).",
    ),
]
Rerank = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1000,
        help="Of codes: compare so many of the best again by stored floats, instead of the setting.",
    ),
]
SOURCE_HELP = (
    "An image folder, clips:FOLDER of videos, a .csv or .parquet manifest (key, path, clip or text, label), or glyphs, emoji, "
    "verses:web, verses:kjv, copies:references, moving-glyphs, atari, ptvd:FOLDER, ptvd-texts:FOLDER, ptvd-comments:FOLDER."
)
