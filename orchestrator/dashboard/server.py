"""The process of the dashboard; sockets and signals are those of the API."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from orchestrator.api.server import open_socket, run, server_of
from orchestrator.context import Context
from orchestrator.dashboard.app import make_app

__all__ = ["make_server", "open_socket", "serve"]


def make_server(context: Context, token: str | None) -> uvicorn.Server:
    """The server on an open context, not yet running; give it a socket."""
    return server_of(make_app(context, token), context)


def serve(
    context: Context, listening: socket.socket, token: str | None, ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    run(make_server(context, token), listening, ready)
