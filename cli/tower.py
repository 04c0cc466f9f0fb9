"""`hotrefresh model tower` and `model features`: queries of another modality, and features that others stored."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Seed, Split
from cli.output import Format, Output, show, show_rows
from cli.progress import progress, working
from cli.session import next_step, open_ledger, say

app = typer.Typer(
    no_args_is_help=True,
    help="Towers: who embeds queries of another modality, such as texts, into a model's space.",
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model that embeds the gallery.")]
Plots = Annotated[str, typer.Option(metavar="ptvd:FOLDER", help="Episodes with plots and features.")]


@app.command("add", epilog="Example: hotrefresh model tower add clips captions")
def add(
    model: Model,
    tower: Annotated[str, typer.Argument(metavar="TOWER", help="The model that embeds the queries.")],
    output: Output = Format.TABLE,
) -> None:
    """Let TOWER embed MODEL's queries of the tower's modality. One tower may serve several models of one space."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.towers import add_tower

        row = add_tower(context, model, tower)
        then = next_command(context)
    if not show(row, output):
        say(f"{row.modality}s asked of {row.model} are embedded by {row.tower}")
    next_step(then)


@app.command("list", epilog="Example: hotrefresh model tower list")
def list_towers(output: Output = Format.TABLE) -> None:
    """List the towers of all models, by model and modality."""
    with open_ledger() as context:
        from orchestrator.service import towers
        from orchestrator.service.guide import next_command

        rows = towers.list_towers(context)
        then = next_command(context)
    show_rows("towers", rows, ("model", "modality", "tower", "created_at"), output)
    next_step(then)


@app.command("remove", epilog="Example: hotrefresh model tower remove clips text")
def remove(
    model: Model,
    modality: Annotated[
        str, typer.Argument(metavar="MODALITY", help="Of the queries: image, text or video.")
    ],
    output: Output = Format.TABLE,
) -> None:
    """Forget a model's tower; the model that is one stays registered."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.towers import remove_tower

        remove_tower(context, model, modality)
        then = next_command(context)
    if not show({"model": model, "modality": modality, "removed": True}, output):
        say(f"{model} has no tower for {modality}s any more")
    next_step(then)


@app.command(
    "train",
    epilog="Example: hotrefresh model tower train captions --model old --data ptvd:plots/ --split train",
)
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tower's name.")],
    model: Annotated[str, typer.Option(help="The model into whose space it embeds texts.")],
    data: Plots,
    split: Split = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 200,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Train a text tower on the sentences of plots, register it, and add it to MODEL."""
    with open_ledger() as context:
        with progress(f"training {name}", "steps") as update:
            from orchestrator.service.towers import train_tower

            row = train_tower(context, name, model, data, split, steps=steps, seed=seed, progress=update)
        from orchestrator.service.guide import next_command

        then = next_command(context)
    if not show(row, output):
        pairs = row.manifest["training"]["pairs"]
        say(
            f"model {row.name}: texts into the space of {model}, {row.dim} dimensions, trained on {pairs} pairs"
        )
    next_step(then)


FEATURES_EXAMPLE = (
    "Example: hotrefresh model features new clip-l14 --data ptvd:plots/ --into old --split train"
)


def features(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="The folder below features/.")],
    data: Plots,
    into: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Map them into this model's space by ridge regression."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --into: the episodes to fit the map on.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Register features that others stored as a model: a gallery is refreshed from one to another without any video."""
    with open_ledger() as context:
        with working(f"reading {encoder}"):
            from orchestrator.service.towers import import_features

            row = import_features(context, name, encoder, data, split, into)
        from orchestrator.service.guide import next_command

        then = next_command(context)
    if not show(row, output):
        mapped = f" in the space of {into}" if into else ""
        say(f"model {row.name}: {row.modality}s, features of {encoder}{mapped}, {row.dim} dimensions")
    next_step(then)
