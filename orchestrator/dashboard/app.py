"""The application: its pages, and how errors become pages."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator.context import Context
from orchestrator.dashboard import (
    actions,
    audit,
    certificates,
    flips,
    items,
    pictures,
    rollout,
    rollouts,
    serving,
    sign_in,
)
from orchestrator.dashboard.guard import MAX_FORM_BYTES, Guard
from orchestrator.dashboard.site import BodyTooLongError, FormRefusedError, Site
from orchestrator.errors import ExitCode, HotrefreshError

STATIC = Path(__file__).parent / "static"
PAGES = (rollouts, rollout, flips, items, serving, certificates, audit, actions, pictures, sign_in)
_STATUS = {
    ExitCode.USAGE: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.CONFLICT: 409,
    ExitCode.NOT_CERTIFIED: 409,
    ExitCode.INCONCLUSIVE: 409,
    ExitCode.UNREACHABLE: 503,
}
_TITLES = {
    400: "That cannot be shown",
    403: "Refused",
    404: "Not found",
    405: "Not possible here",
    408: "Too slow",
    409: "Not possible now",
    413: "Too long",
    500: "Something went wrong",
    503: "The ledger is away",
}


def make_app(context: Context, token: str | None) -> Starlette:
    """The dashboard on an open context. `token`: what people sign in with; None on loopback only."""
    site = Site(context, token)
    errors = _Errors(site)
    app = Starlette(
        routes=[
            *(route for page in PAGES for route in page.routes(site)),
            Route("/livez", _livez),
            Route("/favicon.ico", _favicon),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={
            HotrefreshError: errors.known,
            HTTPException: errors.refused,
            FormRefusedError: errors.strange_form,
            BodyTooLongError: errors.too_long,
            TimeoutError: errors.too_slow,
            Exception: errors.unexpected,
        },
    )
    app.add_middleware(Guard, token=token, sessions=site.sessions)
    return app


async def _livez(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _favicon(request: Request) -> Response:
    """A browser asks for it where an answer is no page that names its icon."""
    return RedirectResponse("/static/icon.svg", status_code=308)


class _Errors:
    """Every error is a page with its status, one clear message and a way on."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def _page(self, request: Request, status: int, message: str) -> Response:
        title = _TITLES.get(status, "Refused")
        return self._site.page(request, "error.html", http_status=status, title=title, message=message)

    def known(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HotrefreshError)
        return self._page(request, _STATUS.get(ExitCode(error.exit_code), 500), str(error))

    def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "There is no such page." if error.status_code == 404 else str(error.detail)
        return self._page(request, error.status_code, message)

    def strange_form(self, request: Request, error: Exception) -> Response:
        message = "The form is not of a page that this browser has open now; nothing was changed. Open the page again."
        return self._page(request, 403, message)

    def too_long(self, request: Request, error: Exception) -> Response:
        return self._page(request, 413, f"A form may have {MAX_FORM_BYTES} bytes.")

    def too_slow(self, request: Request, error: Exception) -> Response:
        return self._page(request, 408, "The form did not come in time; nothing was changed.")

    def unexpected(self, request: Request, error: Exception) -> Response:
        return self._page(request, 500, f"Unexpected {type(error).__name__}; the dashboard's log says more.")
