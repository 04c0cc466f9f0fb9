"""The application: routes, what they answer, and how errors become answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
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
from orchestrator.api.health import Health
from orchestrator.api.metrics import make_registry
from orchestrator.api.query import Bodies, content_of, parse
from orchestrator.api.replicas import Replicas, ServedReplica
from orchestrator.api.traffic_metrics import TrafficCollector
from orchestrator.context import Context
from orchestrator.errors import ExitCode, HotrefreshError, NotFoundError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.service import listings
from orchestrator.service.demand import add_counts
from orchestrator.serving.retrievals import RetrievalCounter
from orchestrator.serving.traffic import Traffic

_STATUS = {
    ExitCode.USAGE: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.CONFLICT: 409,
    ExitCode.UNREACHABLE: 503,
}
_BIGGEST_ID = 2**63 - 1
STICKY_HEADER, MAX_STICKY = "X-Hotrefresh-Sticky", 200


def make_app(context: Context, token: str | None) -> Starlette:
    """The application on an open context. `token`: what everything but health asks for; None on loopback only."""
    server = _Server(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server.replicas.start()
        server.traffic.start()
        server.retrievals.start()
        yield
        await run_in_threadpool(server.replicas.close)
        await run_in_threadpool(server.traffic.close)
        await run_in_threadpool(server.retrievals.close)

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
            TimeoutError: _too_slow,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.add_middleware(Guard, token=token)
    return app


def _known(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ItemError):
        status = 413 if error.reason == "too_large" else 400
        return failure(status, error.reason, f"the query cannot be embedded: {error}")
    assert isinstance(error, HotrefreshError)
    return failure(_STATUS.get(ExitCode(error.exit_code), 500), error.code, str(error))


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, "refused", str(error.detail))


def _too_long(request: Request, error: Exception) -> JSONResponse:
    return failure(413, "too_large", "the body is too long.")


def _too_slow(request: Request, error: Exception) -> JSONResponse:
    return failure(408, "too_slow", "the body did not come in time.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return failure(500, "error", f"unexpected {type(error).__name__}; the server's log says more.")


class _Server:
    """The endpoints."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.traffic = Traffic(context)
        self.replicas = Replicas(context, self.traffic)
        self.retrievals = RetrievalCounter(self._write_retrievals)
        self._health = Health(context, self.replicas)
        self._bodies = Bodies()
        self._registry, self._searches = make_registry(context, self.replicas)
        self._registry.register(TrafficCollector(self.traffic))

    async def livez(self, request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether to send searches here, see `health`. Without the token, nothing but that."""
        found = await run_in_threadpool(self._health.look)
        reasons = {"reasons": list(found.reasons)} if request.scope["trusted"] else {}
        return JSONResponse({"status": found.status, **reasons}, status_code=found.http_status)

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
        rows = []
        if rollout_id <= _BIGGEST_ID:
            rows = await run_in_threadpool(listings.view, self._context, "rollout_status", id=rollout_id)
        if not rows:
            return failure(404, "not_found", f"there is no rollout {str(rollout_id)[:20]}.")
        queue = await run_in_threadpool(listings.view, self._context, "queue_status", rollout=rollout_id)
        return JSONResponse({"schema_version": 1, **_plain(rows[0]), "queue": [_plain(row) for row in queue]})

    async def search(self, request: Request) -> Response:
        """POST {"text": …} or {"key": …} or {"image": base64}, and "k": the nearest items, each with its version."""
        name = request.path_params["gallery"]
        if "\0" in name:
            raise NotFoundError("there is no gallery of this name.")
        replica = await run_in_threadpool(self.replicas.of, name)
        async with self._bodies.read(request, large=replica.gallery.modality == "image") as body:
            return JSONResponse(await run_in_threadpool(self._search, replica, body, sticky_of(request)))

    def _write_retrievals(self, gallery_id: int, counts: dict[int, int]) -> None:
        with transaction(self._context.engine) as connection:
            add_counts(connection, gallery_id, counts)

    def _search(self, replica: ServedReplica, body: bytes, sticky: str | None = None) -> dict[str, Any]:
        asked = parse(body)
        with self._searches.time():
            content = content_of(replica, asked)
            routed = self.traffic.answer(
                replica,
                lambda system, k: system.search([content], k)[0],
                asked.k,
                sticky=sticky,
                item=replica.item(asked.value) if asked.kind == "key" else None,
                text=asked.value if asked.kind == "text" else None,
            )
        answer = routed.answer
        self.retrievals.count(replica.gallery.id, [hit.row for hit in answer.hits])
        return {
            "schema_version": 1,
            "gallery": replica.gallery.name,
            "system": routed.system,
            "model": answer.model,
            "rollout": answer.rollout_id,
            "log_sequence": answer.seq,
            "coverage_ratio": answer.coverage_ratio,
            "hits": [{**asdict(hit), "model": replica.model_of(hit.rollout_id)} for hit in answer.hits],
        }


def sticky_of(request: Request) -> str | None:
    """What a caller wants to be told apart by, where it says so.

    Raises:
        UsageError: it is longer than MAX_STICKY.
    """
    sticky = request.headers.get(STICKY_HEADER)
    if sticky is not None and len(sticky) > MAX_STICKY:
        raise UsageError(f"{STICKY_HEADER} has at most {MAX_STICKY} characters.")
    return sticky or None


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
