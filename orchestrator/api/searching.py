"""Searches: the content of a request's queries, encoded together with others', answered from one state of the gallery."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from prometheus_client import Histogram
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import ItemError
from orchestrator.api.failures import known_failure, unexpected_failure
from orchestrator.api.guard import MAX_BODY_BYTES
from orchestrator.api.log import log
from orchestrator.api.query import (
    BYTES_A_NUMBER,
    MAX_TEXT_BYTES,
    Asked,
    AskedSearch,
    Bodies,
    Vector,
    content_of,
    parse,
    parse_batch,
    parse_upload,
    takes_pictures,
    vector_of,
)
from orchestrator.api.replicas import Replicas, ServedReplica
from orchestrator.context import Context
from orchestrator.core.traffic import MAX_STICKY, STICKY_HEADER
from orchestrator.errors import ConflictError, HotrefreshError, NotFoundError, StalePathError, UsageError
from orchestrator.ledger.rows import ModelRow
from orchestrator.serving.answers import Answer
from orchestrator.serving.asked_item import content_in
from orchestrator.serving.batching import QueryBatcher
from orchestrator.serving.filters import Where
from orchestrator.serving.matching import check_matchable, deep, matched, views_of
from orchestrator.serving.queries import QueryPath
from orchestrator.serving.replica import Replica
from orchestrator.serving.retrievals import RetrievalCounter
from orchestrator.serving.towers import tower_path
from orchestrator.serving.traffic import Traffic


class Searching:
    """The endpoints that search."""

    def __init__(
        self,
        context: Context,
        replicas: Replicas,
        traffic: Traffic,
        retrievals: RetrievalCounter,
        timed: Histogram,
    ) -> None:
        self._context = context
        self._replicas = replicas
        self._traffic = traffic
        self._retrievals = retrievals
        self._timed = timed
        self._bodies = Bodies()
        self._batchers: dict[int, QueryBatcher] = {}
        self._lock = threading.Lock()

    async def search(self, gallery: str, request: Request) -> Response:
        """The nearest items of a text, an item, a picture or a vector, each with its version."""
        replica = await self._replica(gallery)
        most = MAX_BODY_BYTES if takes_pictures(replica) else MAX_TEXT_BYTES + _vector_bytes(replica)
        sticky = sticky_of(request)
        async with self._bodies.read(request, most) as body:
            return await run_in_threadpool(lambda: self._one(replica, parse(body), sticky))

    async def search_image(self, gallery: str, request: Request) -> Response:
        """The same for a picture that is uploaded as a form's file."""
        replica = await self._replica(gallery)
        if not takes_pictures(replica):
            raise ConflictError(f"gallery {replica.gallery.name!r} holds {replica.gallery.modality}s.")
        sticky = sticky_of(request)
        async with self._bodies.read(request, MAX_BODY_BYTES) as body:
            asked = await parse_upload(request.headers, body)
            return await run_in_threadpool(self._one, replica, asked, sticky)

    async def search_batch(self, gallery: str, request: Request) -> Response:
        """Several queries at once: each is answered or refused on its own, all from the same state of the gallery."""
        replica = await self._replica(gallery)
        count = self._context.settings.api_batch_queries
        most = min(MAX_BODY_BYTES, MAX_TEXT_BYTES + count * (MAX_TEXT_BYTES + _vector_bytes(replica)))
        if takes_pictures(replica):
            most = MAX_BODY_BYTES
        sticky = sticky_of(request)
        async with self._bodies.read(request, most) as body:
            return await run_in_threadpool(lambda: self._many(replica, parse_batch(body, count), sticky))

    async def _replica(self, gallery: str) -> ServedReplica:
        if "\0" in gallery:
            raise NotFoundError("there is no gallery of this name.")
        return await run_in_threadpool(self._replicas.of, gallery)

    def _one(self, replica: ServedReplica, asked: AskedSearch, sticky: str | None) -> Response:
        [query] = asked.queries
        with self._timed.time():
            if asked.match:
                check_matchable(replica.gallery)
            content = self._content(replica, query)
            if isinstance(content, Exception):
                raise content
            if query.kind == "vector":  # made by the model that serves: no other system could read it
                answer, system = self._ask(replica, query, content, asked, asked.k), None
            else:
                routed = self._traffic.answer(
                    replica,
                    lambda searched, k: self._ask(searched, query, content, asked, k),
                    asked.k,
                    sticky=sticky,
                    item=replica.item(query.value) if query.kind == "key" else None,
                    text=query.value if query.kind == "text" else None,
                )
                answer, system = routed.answer, routed.system
        found = {
            "schema_version": 1,
            "gallery": replica.gallery.name,
            "system": system,
            **_hits(replica, answer),
        }
        self._retrievals.count(replica.gallery.id, [hit.row for hit in answer.hits])
        return JSONResponse(found)

    def _ask(self, searched: Replica, query: Asked, content: Any, asked: AskedSearch, k: int) -> Answer:
        """One query's answer by one system."""
        views, depth = [content], k
        if asked.match:
            query, views, depth = (
                replace(query, kind="image"),
                views_of(content_in(content, "image")),
                deep(k),
            )
        answers: list[Answer] = []
        for answer in self._answers(searched, [query] * len(views), views, depth, asked.where):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return matched(answers, views, k) if asked.match else answers[0]

    def _many(self, replica: ServedReplica, asked: AskedSearch, sticky: str | None) -> Response:
        contents = [self._content(replica, query) for query in asked.queries]

        def ask(searched: Replica) -> list[Answer | Exception]:
            return self._answers(searched, asked.queries, contents, asked.k, asked.where)

        if any(query.kind == "vector" for query in asked.queries):
            found, system = ask(replica), None
        else:
            found, system = self._traffic.answer_all(replica, ask, sticky=sticky)
        answers: list[dict[str, Any]] = []
        for each in found:
            if isinstance(each, HotrefreshError):
                answers.append({"error": known_failure(each)[1]})
            elif isinstance(each, Exception):
                log("query.failed", level="error", message=f"{type(each).__name__}: {each}"[:500])
                answers.append({"error": unexpected_failure(each)})
            else:
                self._retrievals.count(replica.gallery.id, [hit.row for hit in each.hits])
                answers.append(_hits(replica, each))
        whole = {
            "schema_version": 1,
            "gallery": replica.gallery.name,
            "system": system,
            "answers": answers,
        }
        return JSONResponse(whole)

    def _content(self, replica: ServedReplica, asked: Asked) -> Any:
        """A text, a decoded picture, an item, None of a vector; or what is wrong with it."""
        if asked.kind == "vector":
            return None
        try:
            return content_of(self._context, replica, asked)
        except Exception as error:  # noqa: BLE001 - this query's, not its neighbours'
            return error

    def _answers(
        self,
        replica: Replica,
        queries: Sequence[Asked],
        contents: Sequence[Any],
        k: int,
        where: Where | None,
    ) -> list[Answer | Exception]:
        """An answer or what was wrong for every query. They are encoded anew where the model is switched meanwhile."""
        while True:
            path = replica.path
            read = [_read(content, path) for content in contents]
            vectors = self._vectors(replica, path, queries, read)
            good = [at for at, vector in enumerate(vectors) if not isinstance(vector, Exception)]
            found: list[Any] = list(vectors)
            try:
                if good:
                    answers = replica.search_vectors(
                        np.stack([found[at] for at in good]),
                        k,
                        where,
                        path_ids=path.ids,
                        # A tower's content means nothing to the old model: as of a vector, that answer is not guarded.
                        contents=[None if _of_tower(queries[at], path) else read[at] for at in good],
                    )
                    for at, answer in zip(good, answers, strict=True):
                        found[at] = answer
                return found
            except StalePathError:
                continue

    def _vectors(
        self, replica: Replica, path: QueryPath, queries: Sequence[Asked], contents: Sequence[Any]
    ) -> list[Vector | Exception]:
        """(dim,) float32 of length 1 or what is wrong, for every query."""
        own = [at for at, query in enumerate(queries) if not _of_tower(query, path)]
        found: list[Any] = [None] * len(queries)
        self._embed(path, queries, contents, own, found)
        for modality in sorted({query.kind for query in queries if _of_tower(query, path)}):
            places = [at for at, query in enumerate(queries) if query.kind == modality]
            try:
                tower = tower_path(self._context, replica, modality)
            except HotrefreshError as error:
                for at in places:
                    found[at] = error
            else:
                self._embed(tower, queries, contents, places, found)
        return found

    def _embed(
        self,
        path: QueryPath,
        queries: Sequence[Asked],
        contents: Sequence[Any],
        places: Sequence[int],
        found: list[Any],
    ) -> None:
        """Put the vectors of the queries at these places, or what is wrong with them, where they belong in `found`."""
        encoder = self._context.encoder(path.embedder)
        prepared: dict[int, Any] = {}
        for at, (query, content) in ((at, (queries[at], contents[at])) for at in places):
            found[at] = content
            try:
                if query.kind == "vector":
                    found[at] = vector_of(query, path)
                elif not isinstance(content, Exception):
                    prepared[at] = encoder.preprocess(content)
            except Exception as error:  # noqa: BLE001 - this query's, not its neighbours'
                found[at] = error
        if prepared:
            vectors = self._encode(path.embedder, list(prepared.values()))
            for at, vector in zip(prepared, vectors, strict=True):
                found[at] = vector

    def _encode(self, model: ModelRow, prepared: list[Any]) -> list[Any]:
        """A vector or an exception for each; where all together fail, only the culprits fail."""
        batcher = self._batcher(model)
        try:
            return [_finite(vector) for vector in batcher.encode(prepared)]
        except Exception as error:  # noqa: BLE001 - told apart below
            if len(prepared) == 1:
                return [error]
        return [each for one in prepared for each in self._encode(model, [one])]

    def _batcher(self, model: ModelRow) -> QueryBatcher:
        with self._lock:
            if model.id not in self._batchers:
                settings = self._context.settings
                self._batchers[model.id] = QueryBatcher(
                    lambda prepared: self._context.encoder(model).encode(prepared),
                    settings.encode_batch,
                    settings.encode_wait_ms / 1e3,
                    _encoders_at_once(),
                )
            return self._batchers[model.id]


def _encoders_at_once() -> int:
    """Batches that the processors can encode at a time; a GPU takes one after the other anyway."""
    import torch

    return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


def _of_tower(asked: Asked, path: QueryPath) -> bool:
    """Whether a query is of another modality than the path's model; vectors are of the model itself, items of any."""
    return asked.kind in ("text", "image") and asked.kind != path.spatial.modality


def _read(content: Any, path: QueryPath) -> Any:
    """A query's content for a path's model; or what is wrong with it."""
    try:
        return content_in(content, path.spatial.modality)
    except Exception as error:  # noqa: BLE001 - this query's, not its neighbours'
        return error


def sticky_of(request: Request) -> str | None:
    """What a caller wants to be told apart by, where it says so.

    Raises:
        UsageError: it is longer than MAX_STICKY.
    """
    sticky = request.headers.get(STICKY_HEADER)
    if sticky is not None and len(sticky) > MAX_STICKY:
        raise UsageError(f"{STICKY_HEADER} has at most {MAX_STICKY} characters.")
    return sticky or None


def _vector_bytes(replica: ServedReplica) -> int:
    return BYTES_A_NUMBER * replica.path.embedder.dim


def _finite(vector: Vector) -> Vector | ItemError:
    if np.isfinite(vector).all():
        return vector
    return ItemError("not_finite", "the model makes no finite vector of it")


def _hits(replica: ServedReplica, answer: Answer) -> dict[str, Any]:
    return {
        "model": answer.model,
        "rollout": answer.rollout_id,
        "log_sequence": answer.seq,
        **({} if answer.seqs is None else {"log_sequences": list(answer.seqs)}),
        "coverage_ratio": answer.coverage_ratio,
        "guarded": answer.guarded,
        "hits": [
            {
                "row": hit.row,
                "key": hit.key,
                "uri": hit.uri,
                "label": hit.label,
                "attributes": hit.attributes,
                "score": hit.score,
                "rollout_id": hit.rollout_id,
                "model": replica.model_of(hit.rollout_id),
                **({} if hit.verified is None else {"matches": hit.matches, "verified": hit.verified}),
            }
            for hit in answer.hits
        ],
    }
