"""`hotrefresh gallery`: items, their embeddings, searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import SOURCE_HELP, GalleryName, Modality, Rerank, Split, Timeout
from cli.output import Format, Output, draw, make_table, plain, show, show_object, show_rows
from cli.progress import progress, working
from cli.session import current, next_step, open_ledger, say, settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from orchestrator.client import Answer
    from orchestrator.context import Context
    from orchestrator.ledger.rows import RolloutRow
    from orchestrator.service.galleries import Imported

app = typer.Typer(no_args_is_help=True, help="Galleries: items and their embeddings.")


@app.command(epilog="Example: hotrefresh gallery create photos ~/Pictures")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The gallery's name.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    modality: Modality = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a gallery. Items that cannot be used are left out, counted, and listed by `ledger errors`.

    Items may be there in several modalities; every one is in the gallery's own, which is the source's first, or --modality.
    """
    with open_ledger() as context:
        with working(f"creating {name}"):
            from orchestrator.service.galleries import create_gallery

            result = create_gallery(context, name, source, split, modality)
        from orchestrator.service.guide import next_command

        then = next_command(context, name)
    imported("gallery", result, output)
    next_step(then)


def imported(kind: str, result: Imported, output: Format) -> None:
    """Show what an import took and what it refused."""
    if show(result, output):
        return
    parts = [f"{kind} {result.name}: {result.taken} {result.modality}s taken, {result.labelled} with a label"]
    parts += [f"{count} of them also a {modality}" for modality, count in sorted(result.also.items())]
    if result.unanswerable:
        parts.append(f"{result.unanswerable} queries without a relevant item")
    if result.too_few_clicks:
        parts.append(f"{result.too_few_clicks} pairs with too few clicks left out")
    if result.rejected:
        parts.append(
            f"{result.rejected} refused ({', '.join(f'{r}: {n}' for r, n in result.reasons.items())})"
        )
    say("; ".join(parts))


@app.command("list", epilog="Example: hotrefresh gallery list")
def list_galleries(output: Output = Format.TABLE) -> None:
    """List galleries, the model that serves each, and its newest rollout."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import galleries

        rows = galleries(context)
        then = next_command(context)
    show_rows(
        "galleries", rows, ("name", "modality", "n_items", "model", "rollout", "state", "source"), output
    )
    next_step(then)


@app.command("show", epilog="Example: hotrefresh gallery show photos")
def show_gallery(name: GalleryName, output: Output = Format.TABLE) -> None:
    """Show a gallery: what serves it, the coverage of each model, its query sets, what was refused at import."""
    with open_ledger() as context:
        from orchestrator.service.galleries import gallery_info
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import view

        info = gallery_info(context, name)
        coverage = view(context, "coverage_by_model", gallery=name)
        then = next_command(context, name)
    document = plain(info.row) | {
        "model": info.model,
        "rejected": info.rejected,
        "query_sets": plain(info.query_sets),
        "coverage": plain(coverage),
    }
    if not show(document, output):
        document["query_sets"] = ", ".join(f"{s.name} ({s.n_queries})" for s in info.query_sets) or None
        document["other_modalities"] = ", ".join(info.row.other_modalities) or None
        document["coverage"] = ", ".join(f"{c['model']} {c['ratio']:.1%}" for c in coverage) or None
        show_object(document, output)
    next_step(then)


@app.command(epilog="Example: hotrefresh gallery embed photos --model old")
def embed(
    name: GalleryName,
    model: Annotated[str, typer.Option(help="The model that embeds the gallery.")],
    from_file: Annotated[
        Path | None,
        typer.Option(
            help="Take embeddings from this .npy file, (items, dim) float32, in the gallery's order."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=65_536, help="Items in a batch.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every item is embedded.")] = True,
    timeout: Timeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Give a gallery its first embeddings, by the workers or from a file. Exit code 7 when items were quarantined."""
    from cli.watch import finish, start_worker, wait_with_bar

    with open_ledger() as context:
        if from_file is not None:
            row = _embed_from_file(context, name, model, from_file)
        else:
            current.interrupted = (
                f"If it was accepted, the embedding goes on: `hotrefresh rollout status -w {name}` shows it."
            )
            with working("asking for the embedding"):
                from orchestrator.service.embed import embed_gallery

                row = embed_gallery(context, name, model, batch_size)
            start_worker(context, row.id)
            if wait:
                wait_with_bar(context, row.id, f"embedding {name}", timeout)
        finish(context, row.id, output, accepted=not wait and from_file is None)


def _embed_from_file(context: Context, name: str, model: str, path: Path) -> RolloutRow:
    from models.datasets.embeddings_file import map_embeddings
    from orchestrator.service.embed import import_embeddings

    vectors = map_embeddings(path)
    with progress(f"importing {path.name}") as update:
        return import_embeddings(context, name, model, vectors, update)


@app.command(epilog="Example: hotrefresh gallery add photos ~/Pictures/new")
def add(
    name: GalleryName,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    output: Output = Format.TABLE,
) -> None:
    """Add items, also in the middle of a rollout: workers embed them first, with the model that serves."""
    _change_items(name, source, split, output, "add_items", "added")


@app.command(epilog="Example: hotrefresh gallery update photos ~/Pictures/retouched")
def update(
    name: GalleryName,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    split: Split = None,
    output: Output = Format.TABLE,
) -> None:
    """Give items that the gallery has the content found under their keys. The old vector serves until the new one is in.

    A source of another modality than the gallery's gives each item that too, and leaves the rest of it as it is.
    """
    _change_items(name, source, split, output, "update_items", "changed")


def _change_items(name: str, source: str, split: str | None, output: Format, verb: str, done: str) -> None:
    from cli.watch import start_worker

    with open_ledger() as context:
        with working(f"reading {source}"):
            from orchestrator.service import items

            changed = getattr(items, verb)(context, name, source, split)
        if changed.rollout_id is not None:
            start_worker(context, changed.rollout_id)
        from orchestrator.service.guide import next_command

        then = next_command(context, name)
    if not show(changed, output):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in changed.reasons.items())
        say(
            f"gallery {name}: {changed.items} {done}"
            + (f", rollout {changed.rollout_id} embeds them" if changed.rollout_id is not None else "")
            + (f"; {changed.rejected} refused ({reasons})" if changed.rejected else "")
        )
    next_step(then)


@app.command(epilog="Example: hotrefresh gallery delete photos holiday/1.jpg --yes")
def delete(
    name: GalleryName,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The keys of the items.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Take items out of a gallery for good. Searches stop finding them within a moment, whatever is being re-embedded."""
    from cli.session import confirm

    confirm(f"Deleting {len(keys)} items of gallery {name}: searches no longer find them.", yes=yes)
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.items import delete_items

        changed = delete_items(context, name, keys)
        then = next_command(context, name)
    if not show(changed, output):
        say(f"gallery {name}: {changed.items} deleted")
    next_step(then)


@app.command(
    epilog="Example: hotrefresh gallery search photos --image query.jpg -k 5 --where label=bicycle; hotrefresh gallery search "
    "photos --key holiday/1.jpg --server http://127.0.0.1:8080"
)
def search(
    name: GalleryName,
    text: Annotated[str | None, typer.Option(help="Search by this text.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search by this picture.")] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Search by this GIF, MP4 or folder of frames, without --server."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Search by an item of the gallery.")] = None,
    vector: Annotated[
        Path | None,
        typer.Option(help="Search by this .npy file: one vector, (dim,), of the model that serves."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many answers.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ATTRIBUTE=VALUE",
            help="Only items with this attribute, such as label=cat; again with the same attribute: or that value.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask this running `hotrefresh serve` (default: server_url); without one the search is done here."
        ),
    ] = None,
    sticky: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Whom it is for: while a canary goes on, the server answers the same ID by the same system.",
        ),
    ] = None,
    rerank: Rerank = None,
    match: Annotated[
        bool,
        typer.Option(
            "--match",
            help="Of pictures: verify the best 20 by local matching (copy detection), and rank them by the points that match.",
        ),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Search a gallery with the model that serves it now. Each hit names the version of its embedding."""
    from models.errors import UsageError

    if sum(given is not None for given in (text, image, video, key, vector)) != 1:
        raise UsageError(
            "say what to search by, one of --text TEXT, --image FILE, --video FILE, --key KEY, --vector FILE."
        )
    asked: dict[str, Any] = {
        "text": text,
        "image": image,
        "key": key,
        "vector": None if vector is None else _vector(vector),
    }
    wanted = _wanted(where or [])
    url = server or settings().server_url
    if url is not None:
        if rerank is not None:
            raise UsageError(
                "--rerank goes without --server: a server is told when it starts, `serve --rerank`."
            )
        if video is not None:
            raise UsageError(
                "--video goes without --server: servers are asked for videos by --key KEY or --vector FILE."
            )
        _show_answer(_ask(url, name, asked, k, wanted, sticky, match=match), output)
        return
    if sticky is not None:
        raise UsageError(
            "--sticky goes with --server: what is searched here is the new system, for everybody."
        )
    with open_ledger() as context:
        with working("searching"):
            from orchestrator.service.search import Query
            from orchestrator.service.search import search as search_here

            answer = search_here(context, name, Query(**asked, video=video), k, wanted, rerank, match=match)
        from orchestrator.service.guide import next_command

        then = next_command(context, name)
    _show_answer(answer, output)
    next_step(then)


def _ask(
    url: str,
    name: str,
    asked: dict[str, Any],
    k: int,
    wanted: dict[str, list[str]] | None,
    sticky: str | None,
    *,
    match: bool,
) -> Answer:
    from orchestrator.api.tokens import token_of
    from orchestrator.client import Client

    with working(f"asking {url}"), Client(url, token_of(settings())) as client:
        return client.search(name, k=k, where=wanted, sticky=sticky, match=match, **asked)


def _show_answer(answer: Answer, output: Format) -> None:
    hits: list[dict[str, Any]] = [
        {
            "rank": rank,
            "score": hit.score,
            "key": hit.key,
            "label": hit.label,
            "attributes": hit.attributes,
            "uri": hit.uri,
            "version": hit.model,
            **({} if hit.verified is None else {"matches": hit.matches, "verified": hit.verified}),
        }
        for rank, hit in enumerate(answer.hits, 1)
    ]
    document = {
        "gallery": answer.gallery,
        "model": answer.model,
        "coverage_ratio": answer.coverage_ratio,
        "seq": answer.log_sequence,
        "system": answer.system,
        "guarded": answer.guarded,
        "hits": hits,
    }
    if not show(document, output):
        more = ("attributes",) * any(hit.attributes for hit in answer.hits)
        more += ("matches", "verified") * any(hit.verified is not None for hit in answer.hits)
        draw(make_table(plain(hits), ("rank", "score", "key", "label", *more, "version")))
        of_two = "" if answer.system is None else f", the {answer.system} system of a canary"
        say(
            f"answered by {answer.model}{of_two}; {answer.coverage_ratio:.1%} of the gallery is embedded by it"
            + ("; guarded: the model before helped" if answer.guarded else "")
        )


def _vector(path: Path) -> npt.NDArray[np.floating[Any]]:
    """One vector out of a .npy file."""
    import numpy as np

    from models.errors import UsageError

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read as a .npy file: {error}.") from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or not np.issubdtype(found.dtype, np.floating):
        raise UsageError(f"{path} must hold one vector, (dim,) of floating-point numbers.")
    return found


def _wanted(where: list[str]) -> dict[str, list[str]] | None:
    """Attribute → values, out of ATTRIBUTE=VALUE again and again."""
    from models.errors import UsageError

    wanted: dict[str, list[str]] = {}
    for each in where:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UsageError(f"{each!r} is no ATTRIBUTE=VALUE, such as label=cat.")
        wanted.setdefault(name, []).append(value)
    return wanted or None
