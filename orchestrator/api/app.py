"""The application: routes, what they answer, and how errors become answers."""

from __future__ import annotations

import base64
import binascii
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from models.errors import ItemError
from orchestrator.api.guard import BodyTooLongError, Guard, failure
from orchestrator.api.metrics import make_registry
from orchestrator.api.replicas import Replicas
from orchestrator.context import Context
from orchestrator.errors import ConflictError, ExitCode, HotrefreshError, UsageError
from orchestrator.ledger import database
from orchestrator.service import listings

MOST_ANSWERS = 1000
_STATUS = {
    ExitCode.USAGE: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.CONFLICT: 409,
    ExitCode.UNREACHABLE: 503,
}


def make_app(context: Context, token: str | None) -> Starlette:
    """The application on an open context. `token`: what everything but health asks for; None on loopback only."""
    server = _Server(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        server.replicas.close()

    app = Starlette(
        routes=[
            Route("/livez", server.livez),
            Route("/readyz", server.readyz),
            Route("/metrics", server.metrics),
            Route("/galleries", server.galleries),
            Route("/rollouts", server.rollouts),
            Route("/rollouts/{rollout_id:int}", server.rollout),
            Route("/search/{gallery}", server.search, methods=["POST"]),
        ],
        exception_handlers={
            HotrefreshError: _known,
            HTTPException: _refused,
            BodyTooLongError: _too_long,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.add_middleware(Guard, token=token)
    return app


def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HotrefreshError)
    return failure(_STATUS.get(ExitCode(error.exit_code), 500), error.code, str(error))


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, "refused", str(error.detail))


def _too_long(request: Request, error: Exception) -> JSONResponse:
    return failure(413, "too_large", "the body is too long.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return failure(500, "error", f"unexpected {type(error).__name__}; the server's log says more.")


class _Server:
    """The endpoints."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.replicas = Replicas(context)
        self._registry, self._searches = make_registry(context, self.replicas)

    async def livez(self, request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """The database answers, its schema is ours, and every replica follows; 503 with the reasons otherwise."""
        reasons = await run_in_threadpool(self._unready)
        return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)

    def _unready(self) -> list[str]:
        try:
            database.check(self._context.engine)
            found = database.current(self._context.engine)
        except HotrefreshError as error:
            return [f"database: {error}"]
        reasons = [] if found == database.HEAD else [f"schema: {found}, this release needs {database.HEAD}"]
        return reasons + [f"replica {name}: {fault}" for name, fault in self.replicas.faults().items()]

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        text = await run_in_threadpool(generate_latest, self._registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def galleries(self, request: Request) -> Response:
        """What there is to search, and what serves it."""
        rows = await run_in_threadpool(listings.galleries, self._context)
        return JSONResponse({"schema_version": 1, "galleries": [_plain(row) for row in rows]})

    async def rollouts(self, request: Request) -> Response:
        """`reporting.rollout_status`, newest first."""
        rows = await run_in_threadpool(listings.view, self._context, "rollout_status", limit=100)
        return JSONResponse({"schema_version": 1, "rollouts": [_plain(row) for row in rows]})

    async def rollout(self, request: Request) -> Response:
        """One rollout: its status and its queue."""
        rollout_id = request.path_params["rollout_id"]
        rows = await run_in_threadpool(listings.view, self._context, "rollout_status", id=rollout_id)
        if not rows:
            return failure(404, "not_found", f"there is no rollout {rollout_id}.")
        queue = await run_in_threadpool(listings.view, self._context, "queue_status", rollout=rollout_id)
        return JSONResponse({"schema_version": 1, **_plain(rows[0]), "queue": [_plain(row) for row in queue]})

    async def search(self, request: Request) -> Response:
        """POST {"text": …} or {"key": …} or {"image": base64}, and "k": the nearest items, each with its version."""
        try:
            asked = await request.json()
        except ValueError:
            raise UsageError("the body is no JSON.") from None
        return JSONResponse(await run_in_threadpool(self._search, request.path_params["gallery"], asked))

    def _search(self, gallery: str, asked: Any) -> dict[str, Any]:
        k, given = _checked(asked)
        replica = self.replicas.of(gallery)
        if given != "key" and replica.gallery.modality != given:
            raise ConflictError(
                f"gallery {gallery!r} holds {replica.gallery.modality}s; search it by one, or by a key."
            )
        with self._searches.time():
            content = self._content(gallery, asked, given)
            answer = replica.search([content], k)[0]
        return {
            "schema_version": 1,
            "gallery": gallery,
            "model": answer.model,
            "log_sequence": answer.seq,
            "coverage_ratio": answer.coverage_ratio,
            "hits": [asdict(hit) for hit in answer.hits],
        }

    def _content(self, gallery: str, asked: dict[str, Any], given: str) -> Any:
        from models.datasets import read_item
        from models.datasets.folder import uri_of

        try:
            if given == "text":
                return asked["text"]
            if given == "key":
                return read_item(listings.item_uri(self._context, gallery, asked["key"]))
            with tempfile.NamedTemporaryFile(prefix="hotrefresh-query-") as file:
                file.write(base64.b64decode(asked["image"], validate=True))
                file.flush()
                return read_item(uri_of(Path(file.name)))
        except binascii.Error:
            raise UsageError("image is not base64.") from None
        except ItemError as error:
            raise UsageError(f"the query cannot be embedded: {error.reason}.") from None


def _checked(asked: Any) -> tuple[int, str]:
    """How many answers are wanted, and by what: text, key or image."""
    if not isinstance(asked, dict):
        raise UsageError('the body must be an object such as {"text": "a red bicycle", "k": 10}.')
    given = [name for name in ("text", "key", "image") if asked.get(name) is not None]
    if len(given) != 1 or not isinstance(asked[given[0]], str):
        raise UsageError("say what to search by: exactly one of text, key and image, a string each.")
    k = asked.get("k", 10)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MOST_ANSWERS:
        raise UsageError(f"k must be a whole number from 1 to {MOST_ANSWERS}.")
    return k, given[0]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with times as ISO 8601 and decimals as numbers."""
    return {
        name: value.isoformat()
        if isinstance(value, datetime)
        else float(value)
        if type(value).__name__ == "Decimal"
        else value
        for name, value in row.items()
    }
