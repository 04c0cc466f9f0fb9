"""Ports of 127.0.0.1 for the embedded servers."""

from __future__ import annotations

import random
import socket
import time

from orchestrator.errors import UnreachableError

# Below the ports that systems give to outgoing connections: a client that reconnects to a server that is being
# restarted could otherwise be given that very port, connect to itself, and keep the server from coming back.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 200


def choose(preferred: int | None, *, patience_s: float = 0.0) -> int:
    """The preferred port if it is one of ours and is, or within `patience_s` becomes, free; else some free one.

    Raises:
        UnreachableError: there is no free port.
    """
    deadline = time.monotonic() + patience_s
    while preferred is not None and _FIRST <= preferred < _LAST:
        if is_free(preferred):
            return preferred
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    for _ in range(_TRIES):
        port = random.randrange(_FIRST, _LAST)  # noqa: S311 (not a secret)
        if is_free(port):
            return port
    raise UnreachableError(
        f"there is no free port on 127.0.0.1 (tried {_TRIES} between {_FIRST} and {_LAST}). End programs that listen there, "
        "or use servers of your own: HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL."
    )


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the servers do: old connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
