"""`hotrefresh dashboard`: this process shows the ledger in a browser."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.session import current, open_ledger, say, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh dashboard --port 8081 --open")(dashboard)


def dashboard(
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8081,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in this machine's browser.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show rollouts, flips, versions, certificates and the audit log in a browser until SIGTERM or Ctrl-C.

    Rollouts can be paused, resumed, finalized, cancelled and rolled back, each behind a confirmation and with an audit row.
    With HOTREFRESH_API_TOKEN, or a file with mode 0600 named by HOTREFRESH_API_TOKEN_FILE, people sign in with that token.
    """
    from orchestrator.api.guard import check_binding, token_of

    token = token_of(settings())
    check_binding(host, token, "the dashboard")
    from orchestrator.dashboard.server import open_socket
    from orchestrator.dashboard.server import serve as serve_on

    def ready(url: str) -> None:
        show({"pid": os.getpid(), "url": url}, output, lines=True)
        say(f"the dashboard is on {url}; log lines follow; stop with Ctrl-C")
        sys.stdout.flush()
        if open_:
            _open_browser(url)

    current.interrupted = "The dashboard has stopped; rollouts and workers go on."
    with open_socket(host, port) as listening, open_ledger() as context:
        serve_on(context, listening, token, ready)


def _open_browser(url: str) -> None:
    """In a thread: a browser in the terminal would not return. The socket listens already, so nothing is missed."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
