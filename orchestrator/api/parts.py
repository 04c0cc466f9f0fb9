"""What a shard answers: the nearest of its own rows, to the server that merges (`orchestrator.api.merging`).

These operations are between servers of one release, so /openapi.json does not have them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.api.failures import known_failure
from orchestrator.api.query import READ_TIMEOUT_S
from orchestrator.api.replicas import Replicas, ServedReplica
from orchestrator.api.shapes import MOST_ANSWERS
from orchestrator.context import Context
from orchestrator.core.shards import Shard
from orchestrator.errors import ConflictError, NotFoundError, StalePathError, UsageError


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PartSearch(_Request):
    """Queries that the merging server has encoded.

    Attributes:
        vectors: (q, dim) float32, little-endian, in base64.
        path: ids of the model and of the query adapter that they were made for; the adapter is applied here.
        at_least: a place of the log that another shard has reached.
    """

    vectors: str
    dim: Annotated[int, Field(ge=1)]
    path: tuple[int, int | None]
    k: Annotated[int, Field(ge=1, le=MOST_ANSWERS)]
    where: dict[str, str | list[str]] | None = None
    at_least: int = 0

    def matrix(self) -> npt.NDArray[np.float32]:
        """(q, dim) float32.

        Raises:
            UsageError: these are no vectors of that dimension.
        """
        try:
            flat = np.frombuffer(base64.b64decode(self.vectors, validate=True), "<f4")
            matrix = flat.reshape(-1, self.dim).astype(np.float32)
            if not len(matrix):
                raise ValueError
            return matrix
        except (ValueError, binascii.Error):
            raise UsageError(f"the vectors are not float32 of dimension {self.dim} in base64.") from None


class PartItem(_Request):
    """An item that is looked for."""

    key: str


class Parts:
    """The endpoints of a shard."""

    def __init__(self, context: Context, replicas: Replicas) -> None:
        self._shard = context.settings.held
        self._replicas = replicas

    async def search(self, gallery: str, request: Request) -> Response:
        """Refused: an answer out of a part would look like one out of the whole."""
        self._refuse()

    async def search_image(self, gallery: str, request: Request) -> Response:
        """Refused, as `search`."""
        self._refuse()

    async def search_batch(self, gallery: str, request: Request) -> Response:
        """Refused, as `search`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConflictError(
            f"this server holds shard {self._shard} of each gallery; ask the one that merges (`hotrefresh serve --merge`)."
        )

    async def describe(self, request: Request) -> Response:
        """Which shard this is."""
        return JSONResponse(identity(self._shard))

    async def place(self, gallery: str, request: Request) -> Response:
        """Where a gallery's log stands here, what serves at that place, and what is wrong."""
        replica = await self._replica(gallery)
        error = None if replica.error is None else str(replica.error)
        return JSONResponse(self._place(replica) | {"refused": replica.refused, "error": error})

    async def item(self, gallery: str, request: Request) -> Response:
        """The item of a key, null where another shard holds it or there is none."""
        asked, replica = await _parsed(PartItem, request), await self._replica(gallery)
        try:
            item = replica.item(asked.key)
        except NotFoundError:
            return JSONResponse({"item": None})
        return JSONResponse(
            {"item": {"row": item.row, "key": item.key, "uri": item.uri, "label": item.label}}
        )

    async def search_part(self, gallery: str, request: Request) -> Response:
        """The nearest rows of this shard, of one place of the log that is named; 409 `stale_path` where another path serves."""
        asked, replica = await _parsed(PartSearch, request), await self._replica(gallery)
        return await run_in_threadpool(self._searched, replica, asked)

    def _searched(self, replica: ServedReplica, asked: PartSearch) -> Response:
        vectors = asked.matrix()
        replica.reach_place(asked.at_least)
        names = replica.attributes
        unknown = [name for name in asked.where or {} if name not in names]
        try:
            answers = replica.search_vectors(vectors, asked.k, asked.where, path_ids=asked.path)
        except StalePathError as error:
            status, problem = known_failure(error)
            return JSONResponse({"error": problem, "place": self._place(replica)}, status_code=status)
        place = {
            **identity(self._shard), "gallery": replica.gallery.id, "models": replica.models,
            "seq": answers[0].seq, "path": asked.path, "rollout": answers[0].rollout_id,
        }  # fmt: skip
        found = {
            "items": answers[0].items,
            "coverage_ratio": answers[0].coverage_ratio,
            "hits": [
                [
                    [hit.row, hit.key, hit.uri, hit.label, hit.score, hit.rollout_id, hit.attributes]
                    for hit in answer.hits
                ]
                for answer in answers
            ],
        }
        other = {"unknown": unknown, "attributes": names} if unknown else {}
        return JSONResponse({"place": place, **found, **other})

    def _place(self, replica: ServedReplica) -> dict[str, Any]:
        seq, path, rollout_id = replica.place()
        return {
            **identity(self._shard), "gallery": replica.gallery.id, "models": replica.models,
            "seq": seq, "path": path.ids, "rollout": rollout_id,
        }  # fmt: skip

    async def _replica(self, gallery: str) -> ServedReplica:
        if "\0" in gallery:
            raise NotFoundError("there is no gallery of this name.")
        return await run_in_threadpool(self._replicas.of, gallery)


def identity(shard: Shard) -> dict[str, Any]:
    """Which shard it is, for those who merge."""
    return {"shard": str(shard), "shard_rows": shard.block}


async def _parsed(shape: type[Any], request: Request) -> Any:
    """A body of this shape.

    Raises:
        UsageError: it is none.
    """
    async with asyncio.timeout(READ_TIMEOUT_S):
        body = await request.body()
    try:
        return shape.model_validate_json(body)
    except ValidationError:
        raise UsageError("the body is not of its shape; are all servers of one release?") from None
