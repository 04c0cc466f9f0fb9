"""`hotrefresh model`: encoders, adapters, certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import pretrain, tower
from cli.certificates import draw_certificate
from cli.options import (
    SOURCE_HELP,
    Checkpoint,
    CheckpointEvery,
    Loss,
    Resume,
    Seed,
    Split,
    Threads,
)  # fmt: skip
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show, show_rows
from cli.progress import progress, working
from cli.registries import adapter_names, method_names
from cli.session import next_step, open_ledger, say, settings, warn

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.ledger.rows import ModelRow

app = typer.Typer(no_args_is_help=True, help="Encoders, adapters and their certificates.")
pretrain.register(app)
app.add_typer(tower.app, name="tower")
app.command("features", epilog=tower.FEATURES_EXAMPLE)(tower.features)
COLUMNS = ("name", "kind", "modality", "architecture", "dim", "leads", "fingerprint", "created_at")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]
Old = Annotated[str, typer.Argument(metavar="OLD", help="The model whose embeddings the gallery holds.")]
New = Annotated[str, typer.Argument(metavar="NEW", help="The model that shall search them.")]


@app.command("list", epilog="Example: hotrefresh model list")
def list_models(output: Output = Format.TABLE) -> None:
    """List registered encoders and adapters."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import models

        rows = models(context)
        then = next_command(context)
    if output is Format.TABLE:
        rows = [row | {"fingerprint": row["fingerprint"][:12]} for row in rows]
    show_rows("models", rows, COLUMNS, output)
    next_step(then)


@app.command("show", epilog="Example: hotrefresh model show new")
def show_model(name: Name, output: Output = Format.TABLE) -> None:
    """Show a model's manifest and the certificates it takes part in."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import model

        row = model(context, name)
        then = next_command(context)
    if not show(row, output):
        certificates = plain(row.pop("certificates"))
        training = row.pop("manifest").get("training", {})
        classes = training.get("classes")
        if isinstance(classes, list):
            training = training | {"classes": len(classes)}
        tables = [make_pairs(row | {"training": training})]
        if certificates:
            tables.append(
                make_table(certificates, ("verdict", "query_model", "gallery_model", "adapter", "reason"))
            )
        draw(*tables)
    next_step(then)


@app.command("import", epilog="Example: hotrefresh model import small --wordllama 64")
def import_(
    name: Name,
    folder: Annotated[
        Path | None, typer.Argument(help="An artifact's folder: manifest.json, weights.safetensors.")
    ] = None,
    wordllama: Annotated[
        int | None,
        typer.Option(metavar="DIMS", help="A text encoder: the first DIMS of wordllama's 256 dimensions."),
    ] = None,
    minilm: Annotated[bool, typer.Option("--minilm", help="A text encoder: all-MiniLM-L6-v2.")] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="An encoder of your own; FACTORY(**options) makes it, MODULE is installed or on PYTHONPATH.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="For --encoder; values are JSON or text."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Register a model: an artifact's folder, a built-in text encoder, or an encoder of your own."""
    from models.errors import UsageError

    given = [what for what in (folder, wordllama, minilm or None, encoder) if what is not None]
    if len(given) != 1:
        raise UsageError(
            "say what to import, one of: an artifact's FOLDER, --wordllama DIMS, --minilm, --encoder MODULE:FACTORY."
        )
    options = key_values(option or [])
    if options and encoder is None:
        raise UsageError("--option belongs to --encoder; leave it out.")

    def run(context: Context) -> ModelRow:
        from orchestrator.service import models, training

        if wordllama is not None:
            return training.import_wordllama(context, name, wordllama)
        if minilm:
            return training.import_minilm(context, name)
        if encoder is not None:
            return training.import_factory(context, name, encoder, options)
        assert folder is not None
        return models.import_model(context, folder, name)

    with open_ledger() as context:
        with working(f"importing {name}"):
            row = run(context)
        registered(context, row, output)


def key_values(pairs: list[str], name: str = "--option") -> dict[str, Any]:
    """The values of --option KEY=VALUE, or of the option `name`, JSON or text."""
    from models.errors import UsageError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{name} {pair!r} is not KEY=VALUE.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


@app.command(epilog="Example: hotrefresh model train new --method ract --old old --data photos/")
def train(
    name: Name,
    data: Annotated[str, typer.Option(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    method: Annotated[
        str,
        typer.Option(help=f"{', '.join(method_names())}; all but independent train against --old."),
    ] = "independent",
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the method; may be given again.")
    ] = None,
    old: Annotated[str | None, typer.Option(help="The older model to be compatible with.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Begin with this model's weights, such as a pre-trained one's.")
    ] = None,
    seed: Seed = 0,
    architecture: Annotated[
        str | None,
        typer.Option(help="convnet or vit; of videos r2plus1d or frame_vit (default: the first of the two)."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Of the architecture, such as --architecture vit --network norm=dtn --network depth=4; may be given again.",
        ),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=2, max=4096, help="Length of the embeddings (default 128).")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Edge of the input in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of a video (default 8).")] = None,
    mode: Annotated[str | None, typer.Option(help="L (grey) or RGB.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-7, help="At its peak.")] = None,
    threads: Threads = None,
    precision: Annotated[
        str | None,
        typer.Option(help="32-true or bf16-mixed (default: bf16-mixed on GPUs that can, else 32-true)."),
    ] = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
    output: Output = Format.TABLE,
) -> None:
    """Train an image or video encoder and register it. Without labels each picture is a class of its own.

    A network of your own shape: hotrefresh model train NAME --data photos/ --architecture vit --network norm=dtn

    On several GPUs: torchrun --nproc-per-node 2 -m cli.main model train NAME …
    """
    from models.parallel import rank
    from orchestrator.service.training import TrainRequest, join_training, train_model

    request = TrainRequest(
        name=name,
        source=data,
        split=split,
        method=method,
        method_options=key_values(option or []),
        old=old,
        seed=seed,
        architecture=architecture,
        network=key_values(network or [], "--network"),
        dim=dim,
        init=init,
        size=size,
        frames=frames,
        mode=mode,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        threads=threads,
        precision=precision,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    if rank() > 0:  # process 0 has the ledger, writes and reports
        join_training(request, settings().device)
        return
    with open_ledger() as context:
        with progress(f"training {name}", "steps") as update:
            row = train_model(context, request, update)
        registered(context, row, output)


def registered(context: Context, row: ModelRow, output: Format) -> None:
    """Say what was registered, and what comes next."""
    from orchestrator.service.guide import next_command

    if not show(row, output):
        training = row.manifest.get("training", {})
        trained = (
            f", {training['pictures']} {'videos' if row.modality == 'video' else 'pictures'} in {training['seconds']:.0f} s"
            if "pictures" in training
            else ""
        )
        say(f"model {row.name}: {row.modality}s, {row.architecture}, {row.dim} dimensions{trained}")
    next_step(next_command(context))


@app.command(epilog="Example: hotrefresh model adapt old new --gallery photos")
def adapt(
    old: Old,
    new: New,
    gallery: Annotated[str, typer.Option(help="Pairs are drawn from this gallery's stored embeddings.")],
    name: Annotated[
        str | None, typer.Option(help="The adapter's name (default OLD-to-NEW, or NEW-to-OLD).")
    ] = None,
    method: Annotated[str, typer.Option(help=", ".join(adapter_names()))] = "mlp",
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the method; may be given again.")
    ] = None,
    query_side: Annotated[
        bool,
        typer.Option("--query-side", help="Map NEW's queries into OLD's space; the gallery stays as it is."),
    ] = False,
    pairs: Annotated[int, typer.Option(min=2, help="Items of the gallery to fit on.")] = 10_000,
    views: Annotated[
        int,
        typer.Option(
            min=0, help="Composites of those pictures that both models look at; 0: the pairs as they are."
        ),
    ] = 10_000,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Fit an adapter that lifts stored embeddings of OLD into the space of NEW, or maps queries back, and register it."""
    source, target = (new, old) if query_side else (old, new)
    name = name or f"{source}-to-{target}"
    with open_ledger() as context:
        with progress(f"fitting {name}") as update:
            from orchestrator.service.models import fit_adapter

            row = fit_adapter(
                context,
                old,
                new,
                gallery,
                name=name,
                method=method,
                pairs=pairs,
                views=views,
                seed=seed,
                options=key_values(option or []),
                query_side=query_side,
                progress=update,
            )
        from orchestrator.service.guide import next_command

        then = next_command(context, gallery)
    if not show(row, output):
        say(f"adapter {row.name}: {method}, {source} → {target}")
    next_step(then)


@app.command(epilog="Example: hotrefresh model certify old new --gallery photos --adapter old-to-new")
def certify(
    old: Old,
    new: New,
    gallery: Annotated[str, typer.Option(help="The gallery that holds OLD's embeddings.")],
    queryset: Annotated[
        str | None, typer.Option(help="The query set, where the gallery has several.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Measure through this adapter.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Gallery items measured against, all relevant ones included.")
    ] = 5000,
    minimum_queries: Annotated[
        int, typer.Option(min=1, help="With fewer the verdict is inconclusive.")
    ] = 100,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Inconclusive while the 95 % interval does not exclude a larger loss of recall; 0 asks for no interval.",
        ),
    ] = 0.0,
    loss: Loss = None,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Measure whether NEW may search the stored embeddings of OLD. Exit code 5 when refused, 6 when inconclusive.

    The newest verdict counts, an inconclusive one apart: where the gallery is served by this pair right now, a refusal stops all
    of its searches, and says so.
    """
    with open_ledger() as context:
        with progress(f"measuring {new} on {old}") as update:
            from orchestrator.service.certify import CertifyRequest, certify

            request = CertifyRequest(
                old=old,
                new=new,
                gallery=gallery,
                query_set=queryset,
                adapter=adapter,
                sample=sample,
                minimum_queries=minimum_queries,
                seed=seed,
                tolerance=tolerance,
                loss=loss,
            )
            row = certify(context, request, update)
        from orchestrator.service.guide import next_command
        from orchestrator.service.mixing import refused_searches

        then = next_command(context, gallery)
        stopped = refused_searches(context, gallery) if row.verdict == "refused" else None
    if not show(row, output):
        draw_certificate(row)
    through = f" --adapter {adapter}" if adapter else ""
    if stopped is not None:
        then = f"rollout rollback {gallery}"
        warn(
            f"searches of gallery {gallery} are refused from now on, by every server, until the pair is certified again or the "
            f"rollout is taken back: {stopped}"
        )
    next_step(f"rollout plan {gallery} --to {new}{through}" if row.verdict == "certified" else then)
    exit_for(row.verdict)


def exit_for(verdict: str) -> None:
    """Leave with the exit code of a verdict."""
    from orchestrator.errors import ExitCode

    codes = {"certified": ExitCode.DONE, "inconclusive": ExitCode.INCONCLUSIVE}
    if code := codes.get(verdict, ExitCode.NOT_CERTIFIED):
        raise typer.Exit(code)


@app.command(epilog="Example: hotrefresh model verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models to verify; none: all.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Load models with all checks of their digests. Exit code 1 when one is not what was registered."""
    from orchestrator.errors import ExitCode

    with open_ledger() as context:
        from orchestrator.service.listings import model, models

        rows = [model(context, name) for name in names] if names else models(context)
        with progress("verifying", "models") as update:
            results = []
            for done, row in enumerate(rows, 1):
                results.append({"name": row["name"], **_verified(context, row["name"])})
                update(done, len(rows))
    if not show({"models": results}, output):
        draw(make_table(results, ("name", "ok", "problem")))
    bad = [result for result in results if not result["ok"]]
    next_step(f"model show {bad[0]['name']}" if bad else "model list")
    if bad:
        warn(f"{len(bad)} of {len(results)} models are not what was registered.")
        raise typer.Exit(ExitCode.ERROR)


def _verified(context: Context, name: str) -> dict[str, Any]:
    from orchestrator.errors import ArtifactError
    from orchestrator.service.listings import load

    try:
        load(context, name)
    except ArtifactError as error:
        return {"ok": False, "problem": str(error)}
    return {"ok": True, "problem": None}
