"""The API under a real server on a free loopback port, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from orchestrator.api.server import make_server, open_socket
from orchestrator.api.tokens import Tokens
from orchestrator.context import Context

TOKEN = "a-token-of-the-tests"


def until(done: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def client_of(
    context: Context,
    token: str | None = TOKEN,
    *,
    ready: bool = True,
    tokens: Tokens | None = None,
    port: int = 0,
) -> Iterator[httpx.Client]:
    """A client with the token; `ready`: wait until every gallery is held; `tokens`: what the server takes, if not that alone."""
    with open_socket("127.0.0.1", port) as listening:
        server = make_server(context, tokens or token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=30, limits=limits) as client:
                if ready:
                    until(lambda: client.get("/readyz").json()["status"] == "ready")
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
