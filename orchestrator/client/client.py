"""Requests to a server, tried again where that helps."""

from __future__ import annotations

import base64
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from orchestrator.client.answers import Answer, Gallery, Rollout, answer_of, gallery_of, rollout_of
from orchestrator.core.traffic import MAX_STICKY, STICKY_HEADER
from orchestrator.errors import ExitCode, HotrefreshError, UnreachableError, UsageError

Where = Mapping[str, str | Sequence[str]]
Picture = str | Path | bytes
# A server that says how long to wait is believed up to here.
LONGEST_WAIT_S = 30.0
# Everything is read only, so that asking again is safe: what cannot be reached, is too busy, or is between servers.
_AGAIN = frozenset({429, 502, 503, 504})
_EXIT_CODES = {
    400: ExitCode.USAGE,
    401: ExitCode.USAGE,
    403: ExitCode.USAGE,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    413: ExitCode.USAGE,
    **dict.fromkeys((408, *_AGAIN), ExitCode.UNREACHABLE),
}
Shape = TypeVar("Shape")


class RefusedError(HotrefreshError):
    """The server refused: `code` is its stable word, `status` that of HTTP."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.exit_code = int(_EXIT_CODES.get(status, ExitCode.ERROR))


class Client:
    """A server's client, with connections that stay open. Safe for many threads; close it when done.

    Args:
        url: where the server is, such as http://127.0.0.1:8080.
        token: its bearer token, if it has one.
        timeout_s: for one try, until its answer is there.
        retries: how often a request is sent again when the server cannot be reached or is too busy (429, 502, 503, 504).
        backoff_s: before the first of these; doubled each time, and moved by chance so that clients do not come back at once.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        retries: int = 3,
        backoff_s: float = 0.2,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url[:200]!r} is no URL of a server; write it as http://127.0.0.1:8080.")
        self._url = url
        self._retries = retries
        self._backoff_s = backoff_s
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._http = httpx.Client(
                base_url=url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s)
            )
        except (httpx.InvalidURL, ValueError):  # also of a token that no header can hold
            raise UsageError(f"{url[:200]!r} is no URL of a server, or the token is no plain text.") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def search(
        self,
        gallery: str,
        *,
        text: str | None = None,
        image: Picture | None = None,
        key: str | None = None,
        vector: Sequence[float] | None = None,
        model: str | None = None,
        k: int = 10,
        where: Where | None = None,
        sticky: str | None = None,
        match: bool = False,
    ) -> Answer:
        """The k nearest items of exactly one of text, image (a path, or a file's bytes), key and vector.

        Args:
            vector: (dim,) of the model that serves; a list or an array.
            model: that model; the server refuses where another one serves by now.
            where: attribute → value or values; only such items are found.
            sticky: whom it is for, a user or a session: while a canary goes on the same one always gets the same system.
            match: of an image or a key: the best are verified by local matching and ranked by it.

        Raises:
            UsageError: not exactly one was given, the picture cannot be read, or no header can hold `sticky`.
            RefusedError: the server does not answer this; `code` says why.
            UnreachableError: there is no server, or it did not answer in time.
        """
        query = _query(text=text, image=image, key=key, vector=vector, model=model)
        path = f"/search/{quote(gallery, safe='')}"
        matching = {"match": True} if match else {}  # a server of the release before knows no such option
        if "image" in query:
            form = {name: json.dumps(value) for name, value in (_options(k, where) | matching).items()}
            files = {"file": ("query", query["image"])}
            return self._read(
                lambda found: answer_of(found, gallery),
                "POST",
                path + "/image",
                data=form,
                files=files,
                headers=_headers(sticky),
            )
        body = query | _options(k, where) | matching
        return self._read(
            lambda found: answer_of(found, gallery), "POST", path, json=body, headers=_headers(sticky)
        )

    def search_batch(
        self,
        gallery: str,
        queries: Sequence[Mapping[str, Any]],
        *,
        k: int = 10,
        where: Where | None = None,
        sticky: str | None = None,
    ) -> list[Answer | RefusedError]:
        """Answers in the queries' order, all by one system from one state of the gallery; an error takes the place of its
        answer alone.

        Args:
            queries: each as the arguments of `search`: {"text": …}, {"key": …}, {"image": …} or {"vector": …, "model": …}.

        Raises:
            As `search`; RefusedError: the batch as a whole was refused.
        """
        asked = [_query(**query) for query in queries]
        for query in asked:
            if "image" in query:
                query["image"] = base64.b64encode(query["image"]).decode()

        def answers(document: Any) -> list[Answer | RefusedError]:
            return [
                _refusal(0, each["error"])
                if "error" in each
                else answer_of(each, gallery, document.get("system"))
                for each in document["answers"]
            ]

        body = {"queries": asked} | _options(k, where)
        path = f"/search/{quote(gallery, safe='')}/batch"
        return self._read(answers, "POST", path, json=body, headers=_headers(sticky))

    def galleries(self) -> list[Gallery]:
        """What there is to search.

        Raises:
            RefusedError, UnreachableError: as `search`.
        """
        return self._read(
            lambda found: [gallery_of(each) for each in found["galleries"]], "GET", "/galleries"
        )

    def rollouts(self) -> list[Rollout]:
        """The newest rollouts first, at most 100.

        Raises:
            RefusedError, UnreachableError: as `search`.
        """
        return self._read(lambda found: [rollout_of(each) for each in found["rollouts"]], "GET", "/rollouts")

    def rollout(self, rollout_id: int) -> Rollout:
        """One rollout; its columns have its queue as well.

        Raises:
            RefusedError, UnreachableError: as `search`.
        """
        return self._read(rollout_of, "GET", f"/rollouts/{rollout_id}")

    def _read(self, shape: Callable[[Any], Shape], method: str, path: str, **content: Any) -> Shape:
        """An answer in its shape.

        Raises:
            RefusedError: also of an answer that is not hotrefresh's.
        """
        answer = self._answer(method, path, **content)
        try:
            document = answer.json()
            if answer.status_code == 200:
                return shape(document)
            raise _refusal(answer.status_code, document["error"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RefusedError(
                answer.status_code,
                "strange_answer",
                f"{self._url} answered {answer.status_code}, and not as hotrefresh does; is it `hotrefresh serve`?",
            ) from None

    def _answer(self, method: str, path: str, **content: Any) -> httpx.Response:
        tries = 0
        while True:
            try:
                answer = self._http.request(method, path, **content)
                if answer.status_code not in _AGAIN or tries >= self._retries:
                    return answer
                wait_s = _asked_wait(answer)
            except httpx.TransportError as error:
                # What took too long once would again: the time limit is the caller's.
                if tries >= self._retries or isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
                    what = str(error) or type(error).__name__
                    raise UnreachableError(f"{self._url} cannot be reached: {what}.") from error
                wait_s = 0.0
            backoff_s = self._backoff_s * 2**tries * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            time.sleep(max(wait_s, backoff_s))
            tries += 1


def _query(**given: Any) -> dict[str, Any]:
    """A query of the API; a picture as its file's bytes.

    Raises:
        UsageError: not exactly one of text, image, key and vector, or the picture cannot be read.
    """
    if unknown := sorted(set(given) - {"text", "image", "key", "vector", "model"}):
        raise UsageError(f"there is no {unknown[0]!r} in a query; there is text, image, key, vector, model.")
    query = {name: value for name, value in given.items() if value is not None}
    if len(query.keys() - {"model"}) != 1:
        raise UsageError("say what to search by, exactly one of text, image, key and vector.")
    if "image" in query:
        query["image"] = _bytes_of(query["image"])
    if "vector" in query:
        query["vector"] = [float(number) for number in query["vector"]]
        if not all(map(math.isfinite, query["vector"])):
            raise UsageError("the vector holds a number that is not finite.")
    elif "model" in query:
        raise UsageError("`model` says whose a vector is; it goes with vector alone.")
    return query


def _bytes_of(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise UsageError(f"the picture {picture} cannot be read: {error.strerror}.") from error


def _options(k: int, where: Where | None) -> dict[str, Any]:
    return {"k": k} | ({} if where is None else {"where": _plain(where)})


def _headers(sticky: str | None) -> dict[str, bytes]:
    """What says whom a search is for.

    Raises:
        UsageError: no header can hold it, or it is longer than the server takes.
    """
    if sticky is None:
        return {}
    if not sticky.isprintable() or sticky != sticky.strip() or not 0 < len(sticky.encode()) <= MAX_STICKY:
        raise UsageError(
            f"a sticky id is plain text of 1 to {MAX_STICKY} bytes without blanks around it, such as a user's number."
        )
    return {STICKY_HEADER: sticky.encode()}


def _plain(where: Where) -> dict[str, str | list[str]]:
    return {name: value if isinstance(value, str) else list(value) for name, value in where.items()}


def _refusal(status: int, problem: Mapping[str, str]) -> RefusedError:
    return RefusedError(status, problem["code"], problem["message"])


def _asked_wait(answer: httpx.Response) -> float:
    """What a server says of when to come back, in seconds; a date is not waited for."""
    asked = answer.headers.get("retry-after", "")
    return min(LONGEST_WAIT_S, float(asked)) if asked.isascii() and asked.isdigit() else 0.0
