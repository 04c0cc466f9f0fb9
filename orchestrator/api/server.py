"""The process: its socket, its signals, its server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from orchestrator.api.app import make_app
from orchestrator.api.log import log, use_json_lines
from orchestrator.api.tokens import Tokens
from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.database import limit_statements

STATEMENT_S = 10.0
# Requests at hand may take so long after SIGTERM.
GRACE_S = 30
# Connections beyond these are answered 503 at once.
MOST_CONNECTIONS = 1000


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: the address is not of this machine, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
        # For the connections it accepts. asyncio sees to it only for sockets it made itself, and without it an answer's
        # body waits for the acknowledgement of its head: 40 ms a search.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {host} port {port}: {reason}. Choose another with --host and --port."
        ) from error


def make_server(context: Context, tokens: str | Tokens | None) -> uvicorn.Server:
    """The server on an open context, not yet running; give it a socket."""
    return server_of(make_app(context, tokens), context)


def server_of(app: Starlette, context: Context) -> uvicorn.Server:
    """A server of an application; statements on the context's ledger are limited from now on."""
    limit_statements(context.engine, STATEMENT_S)
    use_json_lines()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def serve(
    context: Context, listening: socket.socket, tokens: str | Tokens | None, ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests at hand are finished first."""
    run(make_server(context, tokens), listening, ready)


def run(server: uvicorn.Server, listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Run a server until SIGTERM or Ctrl-C. `ready` is called with its URL."""
    host, port = listening.getsockname()[:2]
    # uvicorn raises the signal again when it is done. Ours is to return and give everything back.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    log("server.started", host=host, port=port)
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        log("server.stopped")
