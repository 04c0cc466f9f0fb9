"""`hotrefresh serve`: this process answers searches over HTTP."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.options import Rerank
from cli.output import Format, Output, show
from cli.registries import index_backends
from cli.session import current, open_ledger, say, settings

EXAMPLES = (
    'Example: hotrefresh serve --port 8080; curl http://127.0.0.1:8080/search/photos -d \'{"key": "holiday/1.jpg", "k": 5}\'; '
    "HOTREFRESH_API_TOKEN_FILE=tokens hotrefresh serve --host 0.0.0.0"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLES)(serve)


def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8080,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What searches are answered with, instead of the setting: "
            + "; ".join(f"{name} ({what})" for name, what in index_backends().items())
            + ".",
        ),
    ] = None,
    rerank: Rerank = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Hold part I of N of each gallery, instead of the setting; a server with --merge asks it.",
        ),
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Hold no rows and merge what shards answer, instead of the setting: once for each of them.",
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Answer searches, health checks and metrics over HTTP until SIGTERM or Ctrl-C; requests at hand are finished.

    POST /search/GALLERY, /search/GALLERY/image, /search/GALLERY/batch; GET /galleries, /rollouts, /rollouts/ID, /metrics,
    /livez, /readyz, /openapi.json; docs/API.md describes them. The bearer token comes from HOTREFRESH_API_TOKEN or a file
    with mode 0600 named by HOTREFRESH_API_TOKEN_FILE: one token a line, each with a name before it if you like. What is
    taken at most is set by api_requests_at_once, api_batch_queries, api_rate_per_s and api_rate_burst.

    Every replica_snapshot_s seconds, and when it stops, it writes what it holds to <data_dir>/replicas, so that the next start
    reads that and not every item and extent (docs/SERVING.md); 0: it neither writes nor reads any.
    """
    from orchestrator.api.guard import check_binding, tokens_of

    tokens = tokens_of(settings())
    check_binding(host, tokens)
    from orchestrator.api.merging import check_shards
    from orchestrator.api.server import open_socket
    from orchestrator.api.server import serve as serve_on

    def ready(url: str) -> None:
        show({"pid": os.getpid(), "url": url}, output, lines=True)
        say(f"serving on {url} (health: /livez, /readyz); log lines follow; stop with Ctrl-C")
        sys.stdout.flush()

    current.flags["rerank"] = rerank
    _choose(index, shard, merge)
    current.interrupted = "The server has stopped; rollouts and workers go on."
    with open_socket(host, port) as listening, open_ledger() as context:
        if context.settings.merge:
            check_shards(context)
        serve_on(context, listening, tokens, ready)


def _choose(index: str | None, shard: str | None, merge: list[str] | None) -> None:
    """Take these instead of the settings; what cannot be is refused before anything is loaded."""
    from orchestrator.errors import UsageError

    for name, value in (("index", index), ("shard", shard), ("merge", merge)):
        current.flags[name] = value or current.flags.get(name)
    chosen = settings().index
    if chosen not in index_backends():
        raise UsageError(f"there is no index backend {chosen!r}; there are {', '.join(index_backends())}.")
    if settings().shard and settings().merge:
        raise UsageError(
            f"one server is shard {settings().shard} or merges, and not both; start another one with --merge."
        )
