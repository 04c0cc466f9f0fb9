"""The shards that a merging server asks: each one's HTTP, all of them side by side, and whether they make a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from orchestrator.core.shards import Shard
from orchestrator.errors import (
    ConflictError,
    HotrefreshError,
    NotCertifiedError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from orchestrator.settings import masked

# For one answer; a gallery that a shard must load first takes longer, and is asked for again.
TIMEOUT_S, CONNECT_TIMEOUT_S = 30.0, 5.0
# Requests of one merging server at a time, to each shard.
AT_ONCE = 100
Document = dict[str, Any]

_ERRORS: dict[str, type[HotrefreshError]] = {
    kind.code: kind for kind in (ConflictError, NotCertifiedError, NotFoundError, UsageError)
}


class ShardClient:
    """One shard. Safe for many threads."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = masked(url) or ""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            if not url.startswith(("http://", "https://")):
                raise ValueError
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, limits=limits)
        except (httpx.InvalidURL, ValueError):
            raise UsageError(
                f"{self.url[:200]!r} is no URL of a shard; write it as http://10.0.0.7:8080."
            ) from None

    def ask(self, path: str, body: Document | None = None) -> Document:
        """What the shard answers; with `stale`: it refused vectors of another path, and says where it stands.

        Raises:
            UnreachableError: it does not answer, is too busy, or is no shard that takes our token; it is named.
            NotFoundError, ConflictError, NotCertifiedError, UsageError: as the shard says.
        """
        answer = self._sent(path, body)
        try:
            document = answer.json()
            if answer.status_code == 200:
                return dict(document)
            code, message = document["error"]["code"], str(document["error"]["message"])
        except (ValueError, KeyError, TypeError):
            code, message = "strange", f"it answered {answer.status_code}, and not as `hotrefresh serve` does"
        if code == "stale_path" and "place" in document:
            return {"place": document["place"], "stale": True}
        if code in _ERRORS:
            raise _ERRORS[code](message)
        if answer.status_code == 404:
            message = "it is no shard; start it with `hotrefresh serve --shard`"
        raise UnreachableError(f"the shard at {self.url} does not answer: {message.rstrip('.')}.")

    def _sent(self, path: str, body: Document | None) -> httpx.Response:
        for last in (False, True):
            try:
                if body is None:
                    return self._http.get(path)
                return self._http.post(path, json=body)
            except httpx.TimeoutException as error:
                raise UnreachableError(
                    f"the shard at {self.url} did not answer in time ({type(error).__name__})."
                ) from error
            except httpx.TransportError as error:
                # A connection that was kept open may have been closed since; a new one says what is true.
                if last:
                    what = str(error) or type(error).__name__
                    raise UnreachableError(f"the shard at {self.url} cannot be reached: {what}.") from error
        raise AssertionError("the last try answers or raises")

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()


class Shards:
    """All shards of one gallery after the other's URL. Safe for many threads; close it when done."""

    def __init__(self, urls: Sequence[str], token: str | None) -> None:
        self.clients = [ShardClient(url, token) for url in urls]
        # The thread that asks asks one shard itself.
        self._pool = ThreadPoolExecutor(AT_ONCE * max(1, len(urls) - 1), thread_name_prefix="shards")

    def ask(
        self, path: str, body: Document | None = None, which: Iterable[int] | None = None
    ) -> list[Document]:
        """The answers of all shards, or of those places among the URLs, in their order.

        Raises:
            HotrefreshError: as `ShardClient.ask`; of several errors the first.
        """
        first, *others = [self.clients[at] for at in (range(len(self.clients)) if which is None else which)]
        asked = [self._pool.submit(each.ask, path, body) for each in others]
        return [first.ask(path, body), *(each.result() for each in asked)]

    def check(self) -> list[str]:
        """Whether these servers make a whole. Returns why some of them cannot be asked yet; empty: all were.

        Raises:
            UsageError: those that answer cannot be shards of one whole.
        """
        found: list[Document | None] = []
        away = []
        for client in self.clients:
            try:
                found.append(client.ask("/shard"))
            except HotrefreshError as error:
                found.append(None)
                away.append(str(error))
        wrong = not_a_whole([client.url for client in self.clients], found)
        if wrong is not None:
            raise UsageError(wrong)
        return away

    def close(self) -> None:
        """Give threads and connections back."""
        self._pool.shutdown()
        for client in self.clients:
            client.close()


def not_a_whole(urls: Sequence[str], found: Sequence[Document | None]) -> str | None:
    """Why servers are not the shards of one whole; None: they may be.

    Args:
        found: what each says of itself, `shard` and `shard_rows`; None where it could not be asked.
    """
    said = {url: each for url, each in zip(urls, found, strict=True) if each is not None}
    shards = {url: Shard.parse(each["shard"], each["shard_rows"]) for url, each in said.items()}
    counts = {shard.count for shard in shards.values()}
    blocks = {shard.block for shard in shards.values()}
    held = Counter(shard.number for shard in shards.values())
    listed = ", ".join(f"{url} is {shard} in blocks of {shard.block} rows" for url, shard in shards.items())
    if len(set(urls)) < len(urls):
        problem = "a URL is there twice"
    elif len(counts) > 1:
        problem = "they are of different numbers of shards"
    elif len(blocks) > 1:
        problem = "they deal out rows in blocks of different sizes (shard_rows)"
    elif twice := [number for number, times in held.items() if times > 1]:
        problem = f"shard {twice[0]} is there twice"
    elif counts and counts != {len(urls)}:
        problem = f"there are {len(urls)} of {counts.pop()}"
    else:
        return None
    return f"these servers are not the shards of one whole: {problem}. {listed}. Each shard must be given once to --merge."
