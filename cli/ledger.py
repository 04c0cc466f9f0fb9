"""`hotrefresh ledger`: what happened, out of the reporting views."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import ledger_churn, ledger_matching, ledger_shadow
from cli.options import GalleryName, Limit, RolloutName
from cli.output import Format, Output, show, show_rows
from cli.progress import working
from cli.session import next_step, open_ledger, say
from models.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.context import Context

app = typer.Typer(
    no_args_is_help=True,
    help="What happened: flips, churn, thresholds, versions, curves, errors, the audit trail.",
)
RolloutOption = Annotated[
    str | None,
    typer.Option("--rollout", metavar="ROLLOUT", help="Only this rollout: id, GALLERY or GALLERY@latest."),
]


class Kind(StrEnum):
    """What a query turned to."""

    NEGATIVE = "negative"
    POSITIVE = "positive"


class Reference(StrEnum):
    """What an answer is compared with, in a word; `_IN_THE_VIEW` has the view's."""

    OLD = "old"
    PREVIOUS = "previous"


class Cause(StrEnum):
    """Why a query is wrong."""

    MIXED_STAGE = "mixed_stage"
    MODEL = "model"
    QUANTISATION = "quantisation"


_IN_THE_VIEW = {Reference.OLD: "old_system", Reference.PREVIOUS: "previous_stage", None: None}
GalleryOption = Annotated[str | None, typer.Option("--gallery", help="Only this gallery.")]


@app.command(epilog="Example: hotrefresh ledger flips photos --kind negative")
def flips(
    rollout: RolloutName,
    kind: Annotated[Kind | None, typer.Option(help="Only these.")] = None,
    reference: Annotated[
        Reference | None, typer.Option(help="Against the old system, or against the previous stage.")
    ] = None,
    queryset: Annotated[str | None, typer.Option(help="Only this query set.")] = None,
    cause: Annotated[
        Cause | None,
        typer.Option(
            help="mixed_stage: the rest of the refresh may heal it; model, or quantisation by a codec: it will not."
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Only flips at this k; the summary: 1 unless given.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="The counts after every batch instead of each flip.")
    ] = False,
    of_slice: Annotated[
        str,
        typer.Option("--slice", help="Of the summary: all, one such as tenant=acme, or each for every one."),
    ] = "all",
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """List flips: queries that are answered differently now, with the old and the new answer."""
    with open_ledger() as context:
        rollout_id = _rollout_id(context, rollout)
        if summary:
            named = None if of_slice == "each" else of_slice
            rows = _view(
                context, "flip_summary", limit, rollout=rollout_id, queryset=queryset, k=k or 1, slice=named
            )
            columns = (
                "queryset",
                "slice",
                "coverage",
                "n",
                "negative_flips",
                "positive_flips",
                "nfr",
                "pfr",
                "ci_low",
                "ci_high",
            )
            show_rows("flip_summary", rows, columns, output)
        else:
            known = {
                "kind": kind,
                "reference": _IN_THE_VIEW[reference],
                "queryset": queryset,
                "cause": cause,
                "k": k,
            }
            rows = _view(context, "flip_items", limit, rollout=rollout_id, **known)
            columns = (
                "queryset",
                "query",
                "kind",
                "reference",
                "old_item",
                "new_item",
                "old_score",
                "new_score",
                "cause",
                "healed_at",
            )
            compared = any(row["old_verified"] is not None for row in rows)
            show_rows("flips", rows, columns + ("old_verified", "new_verified") * compared, output)
    _cut(rows, limit)
    next_step(f"ledger curve {rollout_id}")


ledger_churn.add_commands(app)
app.command(epilog="Example: hotrefresh ledger shadow photos")(ledger_shadow.shadow)
app.command(epilog="Example: hotrefresh ledger thresholds photos")(ledger_matching.thresholds)
app.command(epilog="Example: hotrefresh ledger verify photos --export pairs.csv")(ledger_matching.verify)


@app.command(epilog="Example: hotrefresh ledger versions photos")
def versions(
    gallery: GalleryName,
    items: Annotated[
        bool, typer.Option("--items", help="Every item's version instead of the coverage.")
    ] = False,
    item: Annotated[str | None, typer.Option(help="Only the item of this key.")] = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show how many items each model has embedded, or the version of single items."""
    with open_ledger() as context:
        from orchestrator.service.listings import gallery_exists, item_uri, item_versions

        gallery_exists(context, gallery)
        if item is not None:
            item_uri(context, gallery, item)
        if items or item is not None:
            rows = item_versions(context, gallery, item, limit)
            columns = ("item", "model", "adapter", "batch", "uncertainty", "committed_at")
            show_rows(
                "versions", rows, columns + ("attributes",) * any(r["attributes"] for r in rows), output
            )
        else:
            rows = _view(context, "coverage_by_model", limit, gallery=gallery)
            show_rows("coverage", rows, ("gallery", "model", "items", "ratio"), output)
    _cut(rows, limit)
    next_step(f"gallery show {gallery}")


@app.command(epilog="Example: hotrefresh ledger curve photos")
def curve(
    rollout: RolloutName,
    metric: Annotated[str | None, typer.Option(help="Only this metric, such as recall_at_1.")] = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show the refresh curve: the metric over coverage, as measured and against other orders."""
    with open_ledger() as context:
        rollout_id = _rollout_id(context, rollout)
        rows = _view(context, "refresh_curve", limit, rollout=rollout_id, metric=metric)
    show_rows("curve", rows, ("queryset", "metric", "against_order", "coverage", "value"), output)
    _cut(rows, limit)
    next_step(f"ledger flips {rollout_id} --summary")


@app.command(epilog="Example: hotrefresh ledger gates photos --try gates.toml")
def gates(
    rollout: RolloutName,
    try_file: Annotated[
        Path | None,
        typer.Option(
            "--try",
            metavar="FILE",
            help="Judge the [[gate]] tables of this TOML file on the numbers of now, without any effect.",
        ),
    ] = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show what the gates decided. Exit code of --try: 5 when a gate would fail, 6 when one could not tell."""
    with open_ledger() as context:
        rollout_id = _rollout_id(context, rollout)
        if try_file is not None:
            _try_gates(context, rollout_id, try_file, output)
            return
        rows = _view(context, "gate_decisions", limit, rollout=rollout_id)
    columns = ("decided_at", "gate", "queryset", "result", "value", "limit", "sample_n", "effect", "times")
    show_rows("gates", rows, columns, output)
    _cut(rows, limit)
    next_step(f"rollout status {rollout_id}")


def _try_gates(context: Context, rollout_id: int, file: Path, output: Format) -> None:
    from orchestrator.errors import ExitCode
    from orchestrator.service.gate_trial import try_gates
    from orchestrator.service.tuning import parse

    _, tables = parse(f"gates={file}")
    if not tables:
        raise UsageError(f"{file} holds no [[gate]] table; docs/FLIPS-AND-GATES.md shows one.")
    found = try_gates(context, str(rollout_id), tables)
    columns = (
        "gate",
        "queryset",
        "slice",
        "result",
        "value",
        "least",
        "limit",
        "sample_n",
        "effect",
        "reason",
    )
    show_rows("trials", found, columns, output)
    next_step(f"rollout set {rollout_id} {shlex.quote(f'gates={file}')}")
    answers = {each.result for each in found}
    if "fail" in answers:
        raise typer.Exit(ExitCode.NOT_CERTIFIED)
    if "inconclusive" in answers:
        raise typer.Exit(ExitCode.INCONCLUSIVE)


@app.command(epilog="Example: hotrefresh ledger errors --gallery photos")
def errors(
    rollout: RolloutOption = None,
    gallery: GalleryOption = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """List quarantined items, failed batches and refused imports, each with its reason."""
    with open_ledger() as context:
        from orchestrator.service.listings import gallery_exists

        gallery_exists(context, gallery)
        rollout_id = None if rollout is None else _rollout_id(context, rollout)
        rows = _view(context, "errors", limit, rollout=rollout_id, gallery=gallery)
    show_rows("errors", rows, ("gallery", "rollout", "item", "type", "class", "attempt", "message"), output)
    _cut(rows, limit)
    next_step("gallery list")


@app.command(epilog="Example: hotrefresh ledger audit --action rollout.paused")
def audit(
    actor: Annotated[str | None, typer.Option(help="Only what this actor did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as rollout.paused.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target: a rollout's id, or a name.")] = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show who did what, when, to what."""
    with open_ledger() as context:
        rows = _view(context, "audit", limit, actor=actor, action=action, target=target)
    show_rows("audit", rows, ("at", "actor", "action", "target", "before", "after"), output)
    _cut(rows, limit)
    next_step("rollout list")


@app.command(epilog="Example: hotrefresh ledger export flip_items flips.csv --rollout photos")
def export(
    view: Annotated[
        str, typer.Argument(metavar="VIEW", help="A reporting view, such as flip_items or audit.")
    ],
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .csv, .json, .jsonl or .parquet file; replaced in one step."),
    ],
    rollout: RolloutOption = None,
    gallery: GalleryOption = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="csv, json, jsonl or parquet; added to FILE where it has none."
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Write a whole reporting view to a file."""
    if format_ is not None and not path.suffix:
        path = path.with_suffix(f".{format_}")
    elif format_ is not None and path.suffix != f".{format_}":
        raise UsageError(f"{path} is no .{format_} file; leave --format out, or name the file so.")
    with open_ledger() as context:
        from orchestrator.service.export import export_view

        filters: dict[str, Any] = {"gallery": gallery}
        if rollout is not None:
            filters["id" if view == "rollout_status" else "rollout"] = _rollout_id(context, rollout)
        with working(f"exporting {view}"):
            count = export_view(context, view, path, **filters)
    if not show({"view": view, "path": path, "rows": count}, output):
        say(f"{count} rows of {view} in {path}")
    next_step("gallery list")


def _rollout_id(context: Context, name: str) -> int:
    from orchestrator.service.listings import rollout

    return rollout(context, name).id


def _view(context: Context, name: str, limit: int, **filters: Any) -> list[dict[str, Any]]:
    from orchestrator.service.listings import view

    return view(context, name, limit=limit, **filters)


def _cut(rows: list[dict[str, Any]], limit: int) -> None:
    if len(rows) == limit:
        say(f"only the first {limit} rows are shown; raise --limit, or use `hotrefresh ledger export`")
