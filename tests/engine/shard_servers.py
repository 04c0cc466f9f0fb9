"""Shards under real servers on loopback ports, and one that merges them, all in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from tests.engine.api_server import TOKEN, client_of


@contextmanager
def serving(
    context: Context, *, ready: bool = True, port: int = 0, **changed: object
) -> Iterator[httpx.Client]:
    """A server of its own on the context's ledger, with other settings."""
    settings = context.settings.model_copy(update={"api_token": TOKEN, **changed})
    with open_context(settings, migrate=False) as own, client_of(own, ready=ready, port=port) as client:
        yield client


class Cluster:
    """Shards in blocks of `rows` rows, the server that merges them, and one that holds everything."""

    def __init__(self, context: Context, count: int, rows: int) -> None:
        self.context, self._count, self._rows = context, count, rows
        self._all = ExitStack()
        self._running: list[ExitStack] = []
        self.shards: list[httpx.Client] = []

    def __enter__(self) -> Cluster:
        with self._all:
            self.whole = self._all.enter_context(serving(self.context))
            for number in range(1, self._count + 1):
                self._running.append(self._all.enter_context(ExitStack()))
                self.shards.append(self._start(number, 0))
            self.urls = [str(client.base_url).rstrip("/") for client in self.shards]
            self.front = self._all.enter_context(serving(self.context, merge=self.urls))
            self._all = self._all.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    def _start(self, number: int, port: int) -> httpx.Client:
        own = serving(self.context, shard=f"{number}/{self._count}", shard_rows=self._rows, port=port)
        return self._running[number - 1].enter_context(own)

    def stop(self, number: int) -> None:
        """Stop a shard; its address stays free for it."""
        self._running[number - 1].close()

    def start(self, number: int) -> None:
        """Start it again where it was: it loads everything anew."""
        self.shards[number - 1] = self._start(number, self.shards[number - 1].base_url.port or 0)
