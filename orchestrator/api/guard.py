"""Who may ask, and how much: bearer tokens, limits on bodies and requests, and errors that say nothing about our inside."""

from __future__ import annotations

import ipaddress
import time

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.limits import AtOnce, Rate
from orchestrator.api.log import log
from orchestrator.api.tokens import ONLY, Tokens, named, token_of, tokens_of
from orchestrator.errors import UsageError

__all__ = ["Guard", "check_binding", "failure", "host_name", "is_loopback", "token_of", "tokens_of"]

# Open to everybody: they say that the process lives and whether it is ready, nothing else.
OPEN = frozenset({"/livez", "/readyz"})
# Asked every few seconds by machines: no log line each.
SILENT = OPEN | {"/metrics"}
# A picture of 50 MB in base64, and a little around it.
MAX_BODY_BYTES = 50 * 2**20 * 4 // 3 + 65_536
# Not counted among the requests at once, nor among a client's requests a second.
UNCOUNTED = SILENT


def check_binding(host: str, token: str | Tokens | None, what: str = "the API") -> None:
    """Refuse to listen beyond this machine without a token. `what`: who would listen, for the message.

    Raises:
        UsageError: it would be open to everybody.
    """
    if token or is_loopback(host):
        return
    raise UsageError(
        f"{what} will not listen on {host} without a token: set HOTREFRESH_API_TOKEN or HOTREFRESH_API_TOKEN_FILE, or "
        "listen on 127.0.0.1."
    )


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(request: Request) -> str:
    """The host that was asked for, without its port."""
    asked = request.headers.get("host", "")
    return asked[1:].partition("]")[0] if asked.startswith("[") else asked.partition(":")[0]


def failure(status: int, code: str, message: str, retry_s: int | None = None) -> JSONResponse:
    """An error as every endpoint answers it. `retry_s`: when to ask again."""
    headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


class Guard:
    """Stands before the application: 401 without a token, 413 for a body that is too long; a log line a request.

    Args:
        tokens: name → token, or the only one; None: this machine alone is answered.
        at_once: 503 beyond so many requests.
        rate: 429 for a client that asks too often: whoever holds a token, or an address where there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: str | Tokens | None,
        at_once: AtOnce | None = None,
        rate: Rate | None = None,
    ) -> None:
        self._app = app
        self._tokens: Tokens | None = {ONLY: tokens} if isinstance(tokens, str) else tokens
        self._at_once = at_once
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        request = Request(scope)
        name = self._name(request)
        scope["trusted"] = name is not None
        refused = self._refusal(request, name)
        counted = refused is None and self._at_once is not None and scope["path"] not in UNCOUNTED
        try:
            if counted and self._at_once is not None and not self._at_once.enter():
                counted = False
                refused = failure(503, "busy", "too many requests at once; try again in a moment.", 1)
            if refused is not None:
                await refused(scope, receive, noted)
            else:
                await self._app(scope, _Limited(receive), noted)
        finally:
            if counted and self._at_once is not None:
                self._at_once.leave()
            if scope["path"] not in SILENT:
                log(
                    "request.answered",
                    method=request.method,
                    path=scope["path"][:200],
                    status=status,
                    token=None if self._tokens is None else name,
                    duration_s=round(time.monotonic() - begun, 6),
                )

    def _name(self, request: Request) -> str | None:
        """Who asks: the name of the token, or without tokens an address of this machine; None: a stranger."""
        if self._tokens is not None:
            return named(self._tokens, request.headers.get("authorization", ""))
        # A page in the user's browser may send to this machine, or name it by a host of its own: not as us.
        if is_loopback(host_name(request)) and "origin" not in request.headers:
            return request.client.host if request.client else "local"
        return None

    def _refusal(self, request: Request, name: str | None) -> JSONResponse | None:
        if request.scope["path"] not in OPEN:
            if name is None and self._tokens is None:
                return failure(
                    403, "refused", "without a token only this machine is answered: ask 127.0.0.1 directly."
                )
            if name is None:
                return failure(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`.")
            if self._rate is not None and request.scope["path"] not in UNCOUNTED:
                wait_s = self._rate.wait_s(name)
                if wait_s:
                    return failure(429, "too_many", f"too many requests; ask again in {wait_s} s.", wait_s)
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > MAX_BODY_BYTES:
            return failure(413, "too_large", f"a body may have {MAX_BODY_BYTES} bytes.")
        return None


class BodyTooLongError(Exception):
    """More bytes came than were announced, or than are allowed."""


class _Limited:
    """Counts a body while it comes, whatever its header said."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > MAX_BODY_BYTES:
            raise BodyTooLongError
        return message
