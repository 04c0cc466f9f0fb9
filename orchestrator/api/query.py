"""What a search asks for: the body, read piece by piece under its limit, and its content, decoded with ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.errors import ItemError
from orchestrator.api import shapes
from orchestrator.api.guard import BodyTooLongError
from orchestrator.api.replicas import ServedReplica
from orchestrator.context import Context
from orchestrator.errors import ConflictError, UsageError
from orchestrator.service.search import unit
from orchestrator.serving.asked_item import AskedItem
from orchestrator.serving.queries import QueryPath

# Of a body with one text or one key; of each query in a batch of them.
MAX_TEXT_BYTES = 64 * 1024
# Of each number in a body with a vector: 17 digits, sign, point, exponent, comma, blanks.
BYTES_A_NUMBER = 32
# Longer bodies are read by so many at once, and pictures decoded: each may take some 250 MB.
LARGE_AT_ONCE = 2
READ_TIMEOUT_S = 30.0
_decoding = threading.BoundedSemaphore(LARGE_AT_ONCE)

Vector = npt.NDArray[np.float32]
Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Asked:
    """One query: `kind` is text, key, image or vector, `value` what was given for it.

    A text or a key is a string, a picture its file's bytes or base64, a vector a list of floats; `model`: whose it is.
    """

    kind: str
    value: Any
    model: str | None = None


@dataclass(frozen=True)
class AskedSearch:
    """Queries of one request, and how they are all answered."""

    queries: tuple[Asked, ...]
    k: int
    where: Mapping[str, str | list[str]] | None
    match: bool = False


class Bodies:
    """Reads bodies; one application has one of these."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @contextlib.asynccontextmanager
    async def read(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """A request's body of at most `most` bytes. Beyond MAX_TEXT_BYTES it waits for its turn until the block is left.

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
                    if len(body) > most:
                        raise BodyTooLongError
                    if len(body) > MAX_TEXT_BYTES and waiting:
                        limit.reschedule(None)  # others' turns are not counted against this one
                        await turn.enter_async_context(self._large)
                        limit.reschedule(asyncio.get_running_loop().time() + READ_TIMEOUT_S)
                        waiting = False
            yield bytes(body)


def parse(body: bytes) -> AskedSearch:
    """A search out of its JSON.

    Raises:
        UsageError: no JSON, not exactly one of text, key, image and vector, or something out of its range.
        BodyTooLongError: it is longer than a body of its kind may be.
    """
    asked = _json(body)
    kind = _kind(asked, "the search")
    found = _shaped(shapes.SEARCHES[kind], asked)
    query = _asked(kind, found)
    if kind in ("text", "key") and len(body) > MAX_TEXT_BYTES:
        raise BodyTooLongError
    if kind == "vector" and len(body) > MAX_TEXT_BYTES + BYTES_A_NUMBER * len(query.value):
        raise BodyTooLongError
    return AskedSearch((query,), found.k, found.where, getattr(found, "match", False))


def parse_batch(body: bytes, most: int) -> AskedSearch:
    """Several queries out of one body.

    Raises:
        UsageError: one of them, or the whole, is not of its shape; more than `most`.
    """
    asked = _json(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("queries"), list):
        raise UsageError(
            'the body must be an object such as {"queries": [{"text": "a red bicycle"}], "k": 10}.'
        )
    if not 1 <= len(asked["queries"]) <= most:
        raise UsageError(f"a batch has 1 to {most} queries; this one has {len(asked['queries'])}.")
    kinds = [_kind(each, f"query {number}") for number, each in enumerate(asked["queries"])]
    queries = tuple(
        _asked(kind, _shaped(shapes.QUERIES[kind], each, f"query {number}: "))
        for number, (kind, each) in enumerate(zip(kinds, asked["queries"], strict=True))
    )
    found = _shaped(shapes.BatchOptions, {name: asked[name] for name in asked if name != "queries"})
    return AskedSearch(queries, found.k, found.where)


async def parse_upload(headers: Headers, body: bytes) -> AskedSearch:
    """A picture's search out of a multipart form: `file`, and perhaps `k`, `where` (a JSON object) and `match`.

    Raises:
        UsageError: it is no such form.
    """

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        # One that is no form has no boundary and no parts; a part may be as long as the body, which has its limit.
        form = await MultiPartParser(
            headers, whole(), max_files=1, max_fields=3, max_part_size=MAX_TEXT_BYTES
        ).parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise UsageError(f"the body is no form that can be read: {str(error)[:200]}.") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise UsageError("send the picture as the form's part `file`, with a file name.")
        found = _shaped(shapes.UploadOptions, _options(form))
        content = await file.read()
    finally:
        await form.close()
    if not content:
        raise UsageError("the form's file is empty.")
    return AskedSearch((Asked("image", content),), found.k, found.where, found.match)


def _options(form: FormData) -> dict[str, Any]:
    """What a form says beside its file."""
    options: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "file" and isinstance(value, UploadFile):
            continue
        if name not in ("k", "where", "match") or name in options or not isinstance(value, str):
            raise UsageError(
                f"the form's part {name[:80]!r} is not wanted; send file, k, where and match, once each."
            )
        options[name] = _json(value.encode(), f"the form's part {name}")
    return options


def _json(body: bytes, what: str = "the body") -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError(f"{what} is no JSON.") from None


def _kind(asked: Any, what: str) -> str:
    if not isinstance(asked, dict):
        raise UsageError(f'{what} must be an object such as {{"text": "a red bicycle"}}.')
    given = [name for name in shapes.SEARCHES if name in asked]
    if len(given) != 1:
        raise UsageError(f"{what} must have exactly one of {', '.join(shapes.SEARCHES)}.")
    return given[0]


def _shaped(shape: type[Shape], asked: dict[str, Any], where: str = "") -> Shape:
    """Checked by its shape; the first thing that is wrong in one sentence.

    Raises:
        UsageError: it does not fit.
    """
    if not all(_is_text(name) for name in asked):
        raise UsageError(f"{where}names must be plain text.")
    try:
        return shape.model_validate(asked)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = str(wrong["loc"][0])[:80]  # what is inside it is named by our own code's names
        if wrong["type"] == "extra_forbidden":
            known = ", ".join(shape.model_fields)
            raise UsageError(f"{where}there is no {place!r} here; there is {known}.") from None
        what = wrong["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}{place}: {what[:1].lower()}{what[1:]}.") from None


def _is_text(value: str) -> bool:
    """Whether a string out of JSON is text: half of a surrogate pair is not."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _asked(kind: str, found: Any) -> Asked:
    return Asked(kind, getattr(found, kind), getattr(found, "model", None))


def takes_pictures(replica: ServedReplica) -> bool:
    """Whether a gallery may be asked by pictures: its items are, or the model that serves embeds them."""
    return "image" in (*replica.gallery.modalities, replica.path.spatial.modality)


def content_of(context: Context, replica: ServedReplica, asked: Asked) -> Any:
    """What is embedded for a search: a text, a decoded picture, or an item as `AskedItem`.

    Raises:
        ConflictError: the gallery holds no pictures.
        NotFoundError: no item of this key.
        ItemError: it cannot be read, or is larger than items may be.
        UsageError: the picture is not base64.
    """
    if asked.kind == "text":
        return asked.value
    if asked.kind == "key":
        known = replica.item(asked.value)
        item = AskedItem(context, replica.gallery, known.row, known.uri)
        with _decoding:
            item.of(replica.path.spatial.modality)
        return item
    if not takes_pictures(replica):
        holds = replica.gallery.modality
        raise ConflictError(
            f"gallery {replica.gallery.name!r} holds {holds}s; search it by one, by a text where its model has a tower, by a key "
            "or by a vector."
        )
    return _picture(asked.value)


def vector_of(asked: Asked, path: QueryPath) -> Vector:
    """(dim,) float32 of length 1, in the space of the model that serves.

    Raises:
        ConflictError: it is not of that model: another one was named, or the dimension is another.
        UsageError: it is not finite, or zero.
    """
    model = path.embedder  # a codec makes codes of its floats here
    if asked.model is not None and asked.model != model.name:
        raise ConflictError(
            f"the vector is of {asked.model[:200]!r}, and {model.name!r} embeds queries; encode the query with that."
        )
    return unit(asked.value, model.name, model.dim)


def _picture(given: str | bytes) -> Any:
    from models.datasets import read_item
    from models.datasets.folder import uri_of

    try:
        content = given if isinstance(given, bytes) else base64.b64decode(given, validate=True)
    except ValueError:  # also of characters that are not ASCII
        raise UsageError("image is not base64.") from None
    with _decoding, tempfile.NamedTemporaryFile(prefix="hotrefresh-query-") as file:
        file.write(content)
        file.flush()
        try:
            return read_item(uri_of(Path(file.name)))
        except ItemError as error:
            raise ItemError(error.reason, str(error).replace(file.name, "the picture")) from None
