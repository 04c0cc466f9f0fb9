"""`hotrefresh queryset`: queries that an upgrade is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.background import background
from cli.gallery import imported
from cli.options import SOURCE_HELP, GalleryName, Modality, Split
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show, show_rows
from cli.progress import working
from cli.session import next_step, open_ledger

app = typer.Typer(
    no_args_is_help=True,
    help="Queries an upgrade is measured on: flips where right answers are known, churn and clicks where not.",
)


@app.command("import", epilog="Example: hotrefresh queryset import photos queries query-photos/")
def import_(
    gallery: GalleryName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The query set's name.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    modality: Modality = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="A CSV file with columns query,item: explicit relevance instead of labels."),
    ] = None,
    clicks: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file with columns query,item and perhaps count: clicks, weak relevance. Their losses are never flips."
        ),
    ] = None,
    minimum_clicks: Annotated[
        int, typer.Option(min=1, help="Of --clicks: a pair clicked fewer times is left out.")
    ] = 1,
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled", help="Nothing is known: only churn against the old system is measured."),
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of ptvd: sources: right are segments that overlap the query's own by this share of the union or more.",
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Import queries; relevant are items of equal label, the explicit pairs, what was clicked, or nothing known."""
    with open_ledger() as context:
        with working(f"importing {name}"):
            from orchestrator.service.galleries import import_query_set

            result = import_query_set(
                context,
                gallery,
                name,
                source,
                split=split,
                modality=modality,
                pairs=pairs,
                clicks=clicks,
                minimum_clicks=minimum_clicks,
                unlabelled=unlabelled,
                overlap=overlap,
            )
        from orchestrator.service.guide import next_command

        then = next_command(context, gallery)
    imported("query set", result, output)
    next_step(then)


@app.command("list", epilog="Example: hotrefresh queryset list photos")
def list_query_sets(
    gallery: Annotated[str | None, typer.Argument(metavar="GALLERY", help="Only this gallery's.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """List query sets, of one gallery or of all."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import query_sets

        rows = query_sets(context, gallery)
        then = next_command(context, gallery)
    show_rows(
        "query_sets",
        rows,
        ("gallery", "name", "modality", "n_queries", "relevance", "source", "created_at"),
        output,
    )
    next_step(then)


@app.command("show", epilog="Example: hotrefresh queryset show photos queries")
def show_query_set(
    gallery: GalleryName,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Where the gallery has several.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show a query set: its counts and its first queries."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import query_set

        row = plain(query_set(context, gallery, name))
        then = next_command(context, gallery)
    if not show(row, output):
        first = row.pop("first_queries")
        draw(make_pairs(row), make_table(first, ("key", "label", "uri")))
    next_step(then)


app.command(epilog="Example: hotrefresh queryset background photos copies:background")(background)
