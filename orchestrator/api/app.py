"""The application: its operations, and what each takes and answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi import Path as PathParameter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator import __version__
from orchestrator.api import shapes
from orchestrator.api.failures import EVERYWHERE, HANDLERS, IN_SEARCHES, OF_HEALTH, declared
from orchestrator.api.guard import Guard, failure
from orchestrator.api.health import Health
from orchestrator.api.limits import AtOnce, Rate
from orchestrator.api.merging import MergedReplicas
from orchestrator.api.metrics import make_registry
from orchestrator.api.openapi import DESCRIPTION, body_of, complete, form_of
from orchestrator.api.parts import Parts
from orchestrator.api.replicas import Replicas
from orchestrator.api.searching import Searching
from orchestrator.api.tokens import Tokens
from orchestrator.api.traffic_metrics import TrafficCollector
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.service import listings
from orchestrator.service.demand import add_counts
from orchestrator.serving.retrievals import RetrievalCounter
from orchestrator.serving.traffic import Traffic

BIGGEST_ID = 2**63 - 1
# Searches at hand: more than cores, because those that wait for the encoder are encoded together.
THREADS = 80
RolloutId = Annotated[int, PathParameter(ge=1, le=BIGGEST_ID)]


def make_app(context: Context, tokens: str | Tokens | None) -> FastAPI:
    """The application on an open context. `tokens`: what everything but health asks for; None on loopback only."""
    server = _Server(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        server.replicas.start()
        server.traffic.start()
        server.retrievals.start()
        yield
        await run_in_threadpool(server.replicas.close)
        await run_in_threadpool(server.traffic.close)
        await run_in_threadpool(server.retrievals.close)

    app = FastAPI(
        title="hotrefresh",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    _reads(app, server)
    settings = context.settings
    if settings.shard is None:
        _searches(app, server.searching)
    else:
        parts = Parts(context, server.replicas)
        _searches(app, parts)
        _parts(app, parts)
    complete(app, settings.api_batch_queries)
    app.add_middleware(
        Guard,
        tokens=tokens,
        at_once=AtOnce(settings.api_requests_at_once),
        rate=Rate(settings.api_rate_per_s, settings.api_rate_burst, time.monotonic),
    )
    return app


def _reads(app: FastAPI, server: _Server) -> None:
    """What is read. HEAD is answered as ever, and not described."""
    reads: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        (
            "/livez",
            server.livez,
            {
                "response_model": shapes.Live,
                "responses": declared(*OF_HEALTH),
                "openapi_extra": {"security": []},
            },
        ),
        (
            "/readyz",
            server.readyz,
            {
                "response_model": shapes.Ready,
                "responses": declared(*OF_HEALTH)
                | {
                    503: {
                        "model": shapes.Ready,
                        "description": "A gallery is not loaded, or the schema is another.",
                    }
                },
                "openapi_extra": {"security": [{}, {"token": []}]},
            },
        ),
        (
            "/metrics",
            server.metrics,
            {
                "response_class": Response,
                "responses": declared(*EVERYWHERE)
                | {
                    200: {
                        "description": "Prometheus text.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            },
        ),
        (
            "/galleries",
            server.galleries,
            {"response_model": shapes.Galleries, "responses": declared(*EVERYWHERE)},
        ),
        (
            "/rollouts",
            server.rollouts,
            {"response_model": shapes.Rollouts, "responses": declared(*EVERYWHERE)},
        ),
        (
            "/rollouts/{rollout_id}",
            server.rollout,
            {"response_model": shapes.OneRollout, "responses": declared(404, *EVERYWHERE)},
        ),
    )
    for path, endpoint, more in reads:
        app.add_api_route(path, endpoint, methods=["GET"], operation_id=endpoint.__name__, **more)
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


def _parts(app: FastAPI, parts: Parts) -> None:
    """What the server that merges asks a shard; described nowhere, because only servers of one release speak it."""
    for method, path, endpoint in (
        ("GET", "/shard", parts.describe),
        ("GET", "/shard/{gallery}", parts.place),
        ("POST", "/shard/{gallery}/item", parts.item),
        ("POST", "/shard/{gallery}/search", parts.search_part),
    ):
        app.add_api_route(path, endpoint, methods=[method], include_in_schema=False)


def _searches(app: FastAPI, searching: Searching | Parts) -> None:
    for path, endpoint, answer, body in (
        ("/search/{gallery}", searching.search, shapes.SearchAnswer, body_of(shapes.Search)),
        ("/search/{gallery}/image", searching.search_image, shapes.SearchAnswer, form_of()),
        (
            "/search/{gallery}/batch",
            searching.search_batch,
            shapes.BatchAnswer,
            body_of(shapes.BatchSearch, "BatchSearch"),
        ),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            operation_id=endpoint.__name__,
            response_model=answer,
            responses=declared(*IN_SEARCHES, *EVERYWHERE),
            openapi_extra={"requestBody": body},
        )


class _Server:
    """The endpoints that read, and the parts of all."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.traffic = Traffic(context)
        merges = bool(context.settings.merge)
        self.replicas = MergedReplicas(context) if merges else Replicas(context, self.traffic)
        self.retrievals = RetrievalCounter(self._write_retrievals)
        self._health = Health(context, self.replicas)
        self._registry, searches = make_registry(context, self.replicas)
        self._registry.register(TrafficCollector(self.traffic))
        self.searching = Searching(context, self.replicas, self.traffic, self.retrievals, searches)

    async def livez(self, request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether to send searches here. Without the token, nothing but that."""
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

    async def rollout(self, rollout_id: RolloutId, request: Request) -> Response:
        """One rollout: its status and its queue."""
        rows = await run_in_threadpool(listings.view, self._context, "rollout_status", id=rollout_id)
        if not rows:
            return failure(404, "not_found", f"there is no rollout {rollout_id}.")
        queue = await run_in_threadpool(listings.view, self._context, "queue_status", rollout=rollout_id)
        return JSONResponse({"schema_version": 1, **_plain(rows[0]), "queue": [_plain(row) for row in queue]})

    def _write_retrievals(self, gallery_id: int, counts: dict[int, int]) -> None:
        with transaction(self._context.engine) as connection:
            add_counts(connection, gallery_id, counts)


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
