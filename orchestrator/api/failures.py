"""How errors become answers: a status, and `{"error": {"code", "message"}}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from models.errors import ItemError
from orchestrator.api.guard import BodyTooLongError, failure
from orchestrator.api.shapes import Failure
from orchestrator.errors import ExitCode, HotrefreshError

_STATUS = {
    ExitCode.USAGE: 400,
    ExitCode.NOT_FOUND: 404,
    ExitCode.CONFLICT: 409,
    ExitCode.NOT_CERTIFIED: 409,
    ExitCode.UNREACHABLE: 503,
}
_MEANINGS = {
    400: "The request is not of its shape, or its content cannot be embedded.",
    401: "No token, or a wrong one.",
    403: "The server has no token and answers this machine alone.",
    404: "There is nothing of that name.",
    408: "The body did not come in time.",
    409: "It does not fit what is there: another kind of items, no embeddings yet, a vector of another model.",
    413: "The body, or the picture in it, is too large.",
    429: "Too many requests of one client; `Retry-After` says when to ask again.",
    500: "Unexpected; the server's log says more.",
    503: "The ledger cannot be reached, or there are too many requests at once.",
}
EVERYWHERE = (401, 403, 413, 429, 500, 503)
OF_HEALTH = (413, 500)
IN_SEARCHES = (400, 404, 408, 409)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation's document says of these errors."""
    return {status: {"model": Failure, "description": _MEANINGS[status]} for status in sorted(statuses)}


def known_failure(error: HotrefreshError) -> tuple[int, dict[str, str]]:
    """The status and the body's content of an error of ours."""
    if isinstance(error, ItemError):
        status = 413 if error.reason == "too_large" else 400
        return status, {"code": error.reason, "message": f"the query cannot be embedded: {error}"}
    return _STATUS.get(ExitCode(error.exit_code), 500), {"code": error.code, "message": str(error)}


def unexpected_failure(error: Exception) -> dict[str, str]:
    """The content of an error that nobody foresaw: nothing of our inside."""
    return {"code": "error", "message": f"unexpected {type(error).__name__}; the server's log says more."}


def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HotrefreshError)
    status, content = known_failure(error)
    return failure(status, content["code"], content["message"])


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = failure(error.status_code, "refused", str(error.detail))
    answer.headers.update(error.headers or {})  # of 405: what is allowed
    return answer


def _no_such_path(request: Request, error: Exception) -> JSONResponse:
    """Of our operations only paths are checked by the framework: what cannot be an id is the id of nothing."""
    return failure(404, "not_found", "there is nothing of that id.")


def _too_long(request: Request, error: Exception) -> JSONResponse:
    return failure(413, "too_large", "the body is too long.")


def _too_slow(request: Request, error: Exception) -> JSONResponse:
    return failure(408, "too_slow", "the body did not come in time.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    content = unexpected_failure(error)
    return failure(500, content["code"], content["message"])


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Any]] = {
    HotrefreshError: _known,
    HTTPException: _refused,
    RequestValidationError: _no_such_path,
    BodyTooLongError: _too_long,
    TimeoutError: _too_slow,
    Exception: _unexpected,
}
