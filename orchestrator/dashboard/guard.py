"""Who may see a page and who may send a form: cookies, Host and Origin, headers, and a log line a request.

Without a token only this machine is answered, by a name of its own: a page of a stranger in the same browser must not reach us
by a name that it lets point here. With one, people sign in with it once; the cookie that they get is not the token.
"""

from __future__ import annotations

import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.guard import host_name, is_loopback
from orchestrator.api.log import log
from orchestrator.dashboard.sessions import LIFETIME_S, Sessions

STATIC = "/static/"
OPEN_PATHS = frozenset({"/sign-in", "/livez"})
MAX_FORM_BYTES = 16_384
READING = frozenset({"GET", "HEAD"})
# Sent by our own script when a page refreshes itself: no log line each.
REFRESH_HEADER = "x-hotrefresh-refresh"

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # `no-referrer` would take the Origin from our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Stands before the pages. `token`: what people sign in with; None on loopback only."""

    def __init__(self, app: ASGIApp, token: str | None, sessions: Sessions) -> None:
        self._app = app
        self._needs_sign_in = token is not None
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500
        request = Request(scope)
        seat = seat_of(request)
        scope["seat"] = seat or Sessions.new_seat()
        scope["signed_in"] = not self._needs_sign_in or (
            seat is not None and self._sessions.is_signed_in(seat)
        )

        async def completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                _complete(request, headers, None if seat else scope["seat"])
            await send(message)

        refused = self._refusal(request)
        try:
            await (refused or self._app)(scope, receive, completed)
        finally:
            if REFRESH_HEADER not in request.headers and not request.scope["path"].startswith(STATIC):
                log(
                    "page.answered",
                    method=request.method,
                    path=request.scope["path"][:200],
                    status=status,
                    duration_s=round(time.monotonic() - begun, 6),
                )

    def _refusal(self, request: Request) -> Response | None:
        if not self._needs_sign_in and not is_loopback(host_name(request)):
            return _refused(
                403, "Without a token the dashboard answers this machine only: open it by 127.0.0.1."
            )
        if request.method not in READING:
            if request.method != "POST":
                return _refused(405, "Pages are read with GET, and forms sent with POST.")
            if not is_own_form(request):
                return _refused(
                    403, "This form was not sent from a page of this dashboard; nothing was changed."
                )
            length = request.headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()) or int(length) > MAX_FORM_BYTES:
                return _refused(413, f"A form may have {MAX_FORM_BYTES} bytes.")
        path = request.scope["path"]
        if request.scope["signed_in"] or path in OPEN_PATHS or path.startswith(STATIC):
            return None
        if request.method in READING and REFRESH_HEADER not in request.headers and _is_page(path):
            asked = path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/sign-in?next={quote(asked, safe='')}", status_code=303)
        return _refused(401, "Sign in first.")


def _complete(request: Request, headers: MutableHeaders, new_seat: str | None) -> None:
    """The headers of every answer; a page gives a browser its cookie, where it has none."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if request.scope["path"].startswith(STATIC):
        headers["Cache-Control"] = "no-cache"  # kept, and asked for with its ETag
    is_page = headers.get("content-type", "").startswith("text/html")
    if new_seat is not None and is_page and "set-cookie" not in headers:
        headers["set-cookie"] = cookie(request, new_seat)


def _is_page(path: str) -> bool:
    return not path.startswith("/pictures/")


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status_code=status)


def is_own_form(request: Request) -> bool:
    """Whether a browser says that a form comes from a page of this very host and port."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is None:
        return request.headers.get("sec-fetch-site") == "same-origin"
    return bool(host) and urlsplit(origin).netloc == host


def _cookie_name(request: Request) -> str:
    """One for each port: browsers do not tell the ports of a host apart."""
    server = request.scope.get("server") or ("", 0)
    return f"hotrefresh_{server[1] or 0}"


def seat_of(request: Request) -> str | None:
    """The cookie that a browser sent, or None."""
    try:
        jar = SimpleCookie("; ".join(request.headers.getlist("cookie")))
    except CookieError:
        return None
    found = jar.get(_cookie_name(request))
    return found.value if found is not None and 20 <= len(found.value) <= 100 else None


def cookie(request: Request, seat: str) -> str:
    """The `Set-Cookie` of a seat: no script reads it, no other site sends it."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{_cookie_name(request)}={seat}; Path=/; Max-Age={int(LIFETIME_S)}; HttpOnly; SameSite=Strict{secure}"
