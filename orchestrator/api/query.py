"""What a search asks for: the body, read piece by piece under its limit, and its content, decoded with ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from models.errors import ItemError
from orchestrator.api.guard import BodyTooLongError
from orchestrator.api.replicas import ServedReplica
from orchestrator.errors import ConflictError, UsageError

MOST_ANSWERS = 1000
# Of a body without a picture.
MAX_TEXT_BYTES = 64 * 1024
# Longer bodies are read by so many at once, and pictures decoded: each may take some 250 MB.
LARGE_AT_ONCE = 2
READ_TIMEOUT_S = 30.0
_decoding = threading.BoundedSemaphore(LARGE_AT_ONCE)


@dataclass(frozen=True)
class Asked:
    """A search as it was asked: `kind` is text, key or image (base64), `value` what was given for it."""

    kind: str
    value: str
    k: int


class Bodies:
    """Reads bodies; one application has one of these."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @contextlib.asynccontextmanager
    async def read(self, request: Request, *, large: bool) -> AsyncIterator[bytes]:
        """A request's body. Beyond MAX_TEXT_BYTES it must be `large`, and waits for its turn until the block is left.

        Raises:
            BodyTooLongError: it is longer than it may be.
            TimeoutError: it did not come within READ_TIMEOUT_S.
        """
        body = bytearray()
        async with contextlib.AsyncExitStack() as turn:
            async with asyncio.timeout(READ_TIMEOUT_S) as limit:
                waiting = True
                async for piece in request.stream():
                    body += piece
                    if len(body) <= MAX_TEXT_BYTES:
                        continue
                    if not large:
                        raise BodyTooLongError
                    if waiting:
                        limit.reschedule(None)  # others' turns are not counted against this one
                        await turn.enter_async_context(self._large)
                        limit.reschedule(asyncio.get_running_loop().time() + READ_TIMEOUT_S)
                        waiting = False
            yield bytes(body)


def parse(body: bytes) -> Asked:
    """A search out of its JSON.

    Raises:
        UsageError: no JSON, not exactly one of text, key and image, or a k out of range.
        BodyTooLongError: it is longer than a body without a picture may be.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is no JSON.") from None
    found = _checked(asked)
    if found.kind != "image" and len(body) > MAX_TEXT_BYTES:
        raise BodyTooLongError
    return found


def _checked(asked: Any) -> Asked:
    if not isinstance(asked, dict):
        raise UsageError('the body must be an object such as {"text": "a red bicycle", "k": 10}.')
    given = [name for name in ("text", "key", "image") if asked.get(name) is not None]
    if len(given) != 1 or not isinstance(asked[given[0]], str):
        raise UsageError("say what to search by: exactly one of text, key and image, a string each.")
    if unknown := sorted(set(asked) - {"text", "key", "image", "k"}):
        raise UsageError(f"there is no {unknown[0][:80]!r} in a search; say text, key or image, and k.")
    k = asked.get("k", 10)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST_ANSWERS:
        raise UsageError(f"k must be a whole number from 1 to {MOST_ANSWERS}.")
    value = asked[given[0]]
    if not value.strip() or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{given[0]} must be plain text and not empty.")
    return Asked(given[0], value, k)


def content_of(replica: ServedReplica, asked: Asked) -> Any:
    """What is embedded for a search: a text, or a decoded picture.

    Raises:
        ConflictError: the gallery holds another kind of items.
        NotFoundError: no item of this key.
        ItemError: it cannot be read, or is larger than items may be.
        UsageError: the picture is not base64.
    """
    holds = replica.gallery.modality
    if asked.kind not in ("key", holds):
        raise ConflictError(
            f"gallery {replica.gallery.name!r} holds {holds}s; search it by one, or by a key."
        )
    if asked.kind == "text":
        return asked.value
    from models.datasets import read_item

    if asked.kind == "key":
        with _decoding:
            return read_item(replica.item(asked.value).uri)
    return _picture(asked.value)


def _picture(encoded: str) -> Any:
    from models.datasets import read_item
    from models.datasets.folder import uri_of

    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:  # also of characters that are not ASCII
        raise UsageError("image is not base64.") from None
    with _decoding, tempfile.NamedTemporaryFile(prefix="hotrefresh-query-") as file:
        file.write(content)
        file.flush()
        try:
            return read_item(uri_of(Path(file.name)))
        except ItemError as error:
            raise ItemError(error.reason, str(error).replace(file.name, "the picture")) from None
