"""`hotrefresh downstream`: frozen modules trained on a model's embeddings, and what a new model is worth to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.model import exit_for
from cli.options import SOURCE_HELP, Seed, Split
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show, show_rows
from cli.progress import progress, working
from cli.session import next_step, open_ledger, say, warn

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.ledger.rows import ModuleCertificateRow, ModuleRow

app = typer.Typer(
    no_args_is_help=True,
    help="Frozen modules behind a model (a classifier, a text tower): no rollout may break one that is registered.",
)
COLUMNS = ("name", "model", "architecture", "metric", "dim", "digest", "created_at", "retired_at")
CERTIFICATE_COLUMNS = ("verdict", "model", "old_value", "new_value", "n", "accepted_loss", "source", "reason")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The module's name.")]
Model = Annotated[str, typer.Option(help="The model whose embeddings it takes.")]


@app.command(epilog="Example: hotrefresh downstream register labels ./head --model old")
def register(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="An artifact's folder: manifest.json, weights.safetensors.")],
    model: Model,
    output: Output = Format.TABLE,
) -> None:
    """Register a frozen module, by its digest. From now on no rollout may break it."""
    with open_ledger() as context:
        with working(f"registering {name}"):
            from orchestrator.service.downstream import register_module

            row = register_module(context, folder, name, model)
        _registered(row, model, output)


@app.command(epilog="Example: hotrefresh downstream train labels --model old --data photos/")
def train(
    name: Name,
    model: Model,
    data: Annotated[str, typer.Option(metavar="SOURCE", help=f"Labelled items. {SOURCE_HELP}")],
    split: Split = None,
    kind: Annotated[
        str,
        typer.Option(
            help="head: a linear classifier of the labels; text-tower: the labels' words, to find pictures by texts."
        ),
    ] = "head",
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 600,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Train a module on a model's embeddings, freeze it and register it."""
    with open_ledger() as context:
        with progress(f"training {name}") as update:
            from orchestrator.service.downstream import TrainModuleRequest, train_module

            request = TrainModuleRequest(name, model, data, kind, split, steps, seed)
            row = train_module(context, request, update)
        _registered(row, model, output)


@app.command("list", epilog="Example: hotrefresh downstream list")
def list_modules(output: Output = Format.TABLE) -> None:
    """List registered modules, oldest first, retired ones too."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import modules

        rows = modules(context)
        then = next_command(context)
    if output is Format.TABLE:
        rows = [row | {"digest": row["digest"][:12]} for row in rows]
    show_rows("modules", rows, COLUMNS, output)
    next_step(f"downstream show {rows[0]['name']}" if rows else then)


@app.command("show", epilog="Example: hotrefresh downstream show labels")
def show_module(name: Name, output: Output = Format.TABLE) -> None:
    """Show a module, whether its bytes are those that were registered, and its certificates, newest first."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import module

        row = module(context, name)
        then = next_command(context)
    if not show(row, output):
        certificates = plain(row.pop("certificates"))
        row.pop("manifest")
        tables = [make_pairs(row)]
        if certificates:
            tables.append(make_table(certificates, CERTIFICATE_COLUMNS))
        draw(*tables)
    next_step(then)


@app.command(epilog="Example: hotrefresh downstream certify labels new --gallery photos")
def certify(
    name: Name,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that shall feed it.")],
    gallery: Annotated[str | None, typer.Option(help="Measure on this gallery's labelled items.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help=f"Or on labelled items that it never saw. {SOURCE_HELP}"),
    ] = None,
    split: Split = None,
    sample: Annotated[int, typer.Option(min=1, help="At most so many items.")] = 5000,
    minimum: Annotated[
        int,
        typer.Option(min=1, help="With fewer pictures (of a text tower: texts) the verdict is inconclusive."),
    ] = 30,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Inconclusive while the 95 % interval does not exclude a larger loss; 0 asks for no interval.",
        ),
    ] = 0.0,
    loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the module's own metric, that is accepted.")
    ] = 0.0,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Measure a module with another model's embeddings. Exit code 5 when refused, 6 when inconclusive.

    The newest verdict counts, an inconclusive one apart. A refusal stops no search; rollouts under way to MODEL can then be
    neither widened nor finalized.
    """
    with open_ledger() as context:
        with progress(f"measuring {name} on {model}") as update:
            from orchestrator.service.downstream import CertifyModuleRequest, certify_module

            request = CertifyModuleRequest(
                name, model, gallery, data, split, sample, minimum, tolerance, loss, seed
            )
            row = certify_module(context, request, update)
        from orchestrator.service.contracts import broken_meanwhile
        from orchestrator.service.guide import next_command

        then = next_command(context, gallery)
        held = broken_meanwhile(context) if row.verdict == "refused" else []
        if not show(row, output):
            _draw(context, name, model, row)
    for rollout, sentence in held:
        warn(f"rollout {rollout} can be neither widened nor finalized: {sentence}")
    if row.verdict != "certified":
        then = f"rollout rollback {held[0][0]}" if held else f"downstream show {name}"
    next_step(then)
    exit_for(row.verdict)


@app.command(epilog="Example: hotrefresh downstream retire labels")
def retire(name: Name, output: Output = Format.TABLE) -> None:
    """Say that nobody uses a module any more: it holds no rollout back. Its certificates stay."""
    with open_ledger() as context:
        from orchestrator.service.downstream import retire_module
        from orchestrator.service.guide import next_command

        row = retire_module(context, name)
        then = next_command(context)
    if not show(row, output):
        say(f"downstream module {row.name} is retired: no rollout is held back by it")
    next_step(then)


def _registered(row: ModuleRow, model: str, output: Format) -> None:
    if not show(row, output):
        say(
            f"downstream module {row.name}: {row.architecture}, takes {row.dim} dimensions of {model}, frozen with digest "
            f"{row.digest[:12]}; measured by {row.metric}"
        )
    next_step(f"downstream show {row.name}")


def _draw(context: Context, name: str, model: str, row: ModuleCertificateRow) -> None:
    from orchestrator.service.listings import module

    known: dict[str, Any] = module(context, name)
    span = None if row.low is None or row.high is None else f"{row.low:+.4f} to {row.high:+.4f}"
    draw(
        make_pairs(
            {
                "metric": known["metric"],
                f"with {known['model']}": row.old_value,
                f"with {model}": row.new_value,
                "difference, 95 %": span,
                "mean of": row.n,
                "measured on": row.source,
            }
        )
    )
    typer.echo(f"{row.verdict}: {row.reason}")
