"""`hotrefresh serve`: this process answers searches over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.session import open_ledger, say, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh serve --port 8080")(serve)


def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="On which port.")] = 8080,
    output: Output = Format.TABLE,
) -> None:
    """Answer searches, health checks and metrics over HTTP until SIGTERM or Ctrl-C; requests at hand are finished.

    POST /search/GALLERY, GET /galleries, /rollouts, /rollouts/ID, /metrics, /livez, /readyz. The bearer token comes from
    HOTREFRESH_API_TOKEN or a file with mode 0600 named by HOTREFRESH_API_TOKEN_FILE.
    """
    from orchestrator.api.guard import check_binding, token_of

    token = token_of(settings())
    check_binding(host, token)
    import uvicorn

    from orchestrator.api.app import make_app

    with open_ledger() as context:
        show({"url": f"http://{host}:{port}"}, output, lines=True)
        say(f"serving on http://{host}:{port} (health: /livez, /readyz; metrics: /metrics)")
        config = uvicorn.Config(
            make_app(context, token),
            host=host,
            port=port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=30,
        )
        uvicorn.Server(config).run()
