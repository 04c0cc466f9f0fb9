"""Who may ask, and how much: a bearer token, limits on bodies, and errors that say nothing about our inside."""

from __future__ import annotations

import hmac
import ipaddress
import os
import stat
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.log import log
from orchestrator.errors import UsageError
from orchestrator.settings import Settings

# Open to everybody: they say that the process lives and whether it is ready, nothing else.
OPEN = frozenset({"/livez", "/readyz"})
# Asked every few seconds by machines: no log line each.
SILENT = OPEN | {"/metrics"}
# A picture of 50 MB in base64, and a little around it.
MAX_BODY_BYTES = 50 * 2**20 * 4 // 3 + 65_536
LEAST_TOKEN = 16


def token_of(settings: Settings) -> str | None:
    """The bearer token: of the environment, or of a file that only its owner may read; None where neither is set.

    Raises:
        UsageError: a file that others may read, or cannot be read at all; a token that is too short or no plain text.
    """
    if settings.api_token:
        return _checked(settings.api_token.strip(), "HOTREFRESH_API_TOKEN")
    if settings.api_token_file is None:
        return None
    return _checked(_private_text(Path(settings.api_token_file)).strip(), str(settings.api_token_file))


def _private_text(path: Path) -> str:
    try:
        # What is judged is what is read. A named pipe would not be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{path} is no file; put the API's token into one, mode 0600.")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise UsageError(
                    f"others may read {path}, which holds the API's token: run `chmod 600 {path}`."
                )
            return file.read(4096).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"the token's file {path} cannot be read: {error.strerror}.") from error


def _checked(token: str, where: str) -> str:
    if len(token) < LEAST_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(
            f"the token in {where} must be at least {LEAST_TOKEN} plain characters without spaces; "
            "`openssl rand -hex 32` makes one."
        )
    return token


def check_binding(host: str, token: str | None, what: str = "the API") -> None:
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


def failure(status: int, code: str, message: str) -> JSONResponse:
    """An error as every endpoint answers it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


class Guard:
    """Stands before the application: 401 without the token, 413 for a body that is too long; a log line a request."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

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
        trusted = self._is_trusted(request)
        scope["trusted"] = trusted
        refused = self._refusal(request, trusted)
        try:
            if refused is not None:
                await refused(scope, receive, noted)
            else:
                await self._app(scope, _Limited(receive), noted)
        finally:
            if request.scope["path"] not in SILENT:
                log(
                    "request.answered",
                    method=request.method,
                    path=request.scope["path"][:200],
                    status=status,
                    duration_s=round(time.monotonic() - begun, 6),
                )

    def _is_trusted(self, request: Request) -> bool:
        if self._token is None:
            # A page in the user's browser may send to this machine, or name it by a host of its own: not as us.
            return is_loopback(host_name(request)) and "origin" not in request.headers
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode())

    def _refusal(self, request: Request, trusted: bool) -> JSONResponse | None:
        if not trusted and request.scope["path"] not in OPEN:
            if self._token is None:
                return failure(
                    403, "refused", "without a token only this machine is answered: ask 127.0.0.1 directly."
                )
            return failure(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`.")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
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
