"""`hotrefresh codec`: codes of a few bits a dimension, fitted on stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.certificates import draw_certificate
from cli.model import exit_for, key_values
from cli.options import Loss, Seed
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show, show_rows
from cli.progress import progress, working
from cli.registries import codec_names
from cli.session import next_step, open_ledger, say

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.ledger.rows import ModelRow

app = typer.Typer(
    no_args_is_help=True, help="Codecs: embeddings become codes of a few bits, and their certificates."
)
COLUMNS = ("name", "base", "method", "width", "bits", "bytes_a_row", "fingerprint", "created_at")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The codec's name.")]
Gallery = Annotated[str, typer.Option(help="The gallery whose stored embeddings are looked at.")]


@app.command(epilog="Example: hotrefresh codec train small-codes --gallery photos --bits 3")
def train(
    name: Name,
    gallery: Gallery,
    model: Annotated[
        str | None, typer.Option(help="Whose embeddings are encoded (default: what the gallery holds).")
    ] = None,
    method: Annotated[str, typer.Option(help=", ".join(codec_names()))] = "rotation",
    bits: Annotated[
        int | None, typer.Option(min=1, max=4, help="Bits a dimension (default 3, or those of --like).")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_536, help="Dimensions of a code (default: the model's, or those of --like)."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC", help="The stored codes are this codec's: the new one shall search them."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=64, help="Items of the gallery to fit on.")] = 50_000,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the method; may be given again.")
    ] = None,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Fit a codec on stored embeddings and register it. No item is read where the model's embeddings are stored."""
    with open_ledger() as context:
        with progress(f"fitting {name}", "steps") as update:
            from orchestrator.service.codecs import TrainCodecRequest, train_codec

            request = TrainCodecRequest(
                name=name,
                gallery=gallery,
                model=model,
                method=method,
                bits=bits,
                width=width,
                like=like,
                sample=sample,
                seed=seed,
                options=key_values(option or []),
            )
            row = train_codec(context, request, update)
        _registered(context, row, output)
    next_step(f"codec certify {name} --gallery {gallery}")


@app.command("import", epilog="Example: hotrefresh codec import small-codes ./codec --model new")
def import_(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="An artifact's folder: manifest.json, weights.safetensors.")],
    model: Annotated[str, typer.Option(help="The model whose embeddings it was fitted on.")],
    output: Output = Format.TABLE,
) -> None:
    """Register a codec that was fitted elsewhere."""
    with open_ledger() as context:
        with working(f"importing {name}"):
            from orchestrator.service.codecs import import_codec_of

            row = import_codec_of(context, folder, name, model)
        _registered(context, row, output)
    next_step("codec list")


@app.command("list", epilog="Example: hotrefresh codec list")
def list_codecs(output: Output = Format.TABLE) -> None:
    """List registered codecs, oldest first."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import codecs

        rows = codecs(context)
        then = next_command(context)
    if output is Format.TABLE:
        rows = [row | {"fingerprint": row["fingerprint"][:12]} for row in rows]
    show_rows("codecs", rows, COLUMNS, output)
    next_step(then)


@app.command("show", epilog="Example: hotrefresh codec show small-codes")
def show_codec(name: Name, output: Output = Format.TABLE) -> None:
    """Show a codec, what it saves, and the certificates it takes part in."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import codec

        row = codec(context, name)
        then = next_command(context)
    if not show(row, output):
        certificates = plain(row.pop("certificates"))
        row.pop("manifest")
        tables = [make_pairs(row)]
        if certificates:
            tables.append(make_table(certificates, ("verdict", "query_model", "gallery_model", "reason")))
        draw(*tables)
    next_step(then)


@app.command(epilog="Example: hotrefresh codec certify small-codes --gallery photos")
def certify(
    name: Name,
    gallery: Gallery,
    queryset: Annotated[
        str | None, typer.Option(help="The query set, where the gallery has several.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Gallery items measured against, all relevant ones included.")
    ] = 5000,
    minimum_queries: Annotated[
        int, typer.Option(min=1, help="With fewer the verdict is inconclusive.")
    ] = 100,
    loss: Loss = None,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Measure whether codes may stand beside what the gallery holds. Exit code 5 when refused, 6 when inconclusive."""
    with open_ledger() as context, progress(f"measuring {name}") as update:
        from orchestrator.service.codecs import certify_codec

        row = certify_codec(
            context,
            name,
            gallery,
            query_set=queryset,
            sample=sample,
            minimum_queries=minimum_queries,
            loss=loss,
            seed=seed,
            progress=update,
        )
    if not show(row, output):
        draw_certificate(row)
    next_step(f"rollout plan {gallery} --codec {name}" if row.verdict == "certified" else "codec list")
    exit_for(row.verdict)


def _registered(context: Context, row: ModelRow, output: Format) -> None:
    from orchestrator.service.listings import codec

    if not show(row, output):
        known = codec(context, row.name)
        say(
            f"codec {row.name}: {known['method']}, {known['width']} dimensions of {known['bits']} bits, "
            f"{known['bytes_a_row']} bytes instead of {known['bytes_a_float_row']} of {known['base']}"
        )
