"""Who may ask, and how much: a bearer token, limits on bodies, and errors that say nothing about our inside."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import UsageError
from orchestrator.settings import Settings

# Open to everybody: they say that the process lives and whether it is ready, nothing else.
OPEN = frozenset({"/livez", "/readyz"})
# A picture of 50 MB in base64, and a little around it.
MAX_BODY_BYTES = 50 * 2**20 * 4 // 3 + 65_536


def token_of(settings: Settings) -> str | None:
    """The bearer token: of the environment, or of a file that only its owner may read.

    Raises:
        UsageError: a file that others may read, or cannot be read at all.
    """
    if settings.api_token is not None:
        return settings.api_token
    if settings.api_token_file is None:
        return None
    path = Path(settings.api_token_file)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(f"others may read {path}, which holds the API's token: run `chmod 600 {path}`.")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"the token's file {path} cannot be read: {error.strerror}.") from error


def check_binding(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        UsageError: it would be open to everybody.
    """
    if token or _is_loopback(host):
        return
    raise UsageError(
        f"the API will not listen on {host} without a token: set HOTREFRESH_API_TOKEN or HOTREFRESH_API_TOKEN_FILE, or "
        "listen on 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def failure(status: int, code: str, message: str) -> JSONResponse:
    """An error as every endpoint answers it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


class Guard:
    """Stands before the application: 401 without the token, 413 for a body that is too long."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused = self._refusal(request)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _Limited(receive), send)

    def _refusal(self, request: Request) -> JSONResponse | None:
        if self._token is not None and request.url.path not in OPEN:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return failure(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`.")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
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
