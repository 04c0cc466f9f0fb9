"""`http`: a number that an endpoint gives, as its whole body or at a JSON pointer; a status other than 200 throttles."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.table_fields import Fields
from orchestrator.throttles.base import ProbeError, Surroundings
from orchestrator.throttles.web import get_text

KIND = "http"
_MOST_BYTES = 1_000_000


class HttpNumber:
    """Any unit: the endpoint's."""

    def __init__(self, url: str, pointer: str | None) -> None:
        self._url = url
        self._pointer = pointer

    def read(self, surroundings: Surroundings) -> float | None:
        """The number that the endpoint gives now."""
        text = get_text(self._url, most_bytes=_MOST_BYTES)
        if self._pointer is None:
            return _number(text.strip())
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise ProbeError("the endpoint answered with something that is not JSON") from None
        return _number(_at(document, self._pointer))


def _number(found: Any) -> float:
    try:
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise ValueError
        return float(found)
    except (ValueError, OverflowError):
        raise ProbeError(f"the endpoint answered with {str(found)[:40]!r}, which is no number") from None


def _at(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) names."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            document = document[int(key) if isinstance(document, list) else key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise ProbeError(f"the endpoint's answer has nothing at {pointer}") from None
    return document


def build(fields: Fields, limit: float) -> HttpNumber:
    """The probe of one table: `url`, and `pointer` where the body is JSON."""
    url = fields.url("url")
    pointer = fields.text("pointer", "") or None
    if pointer is not None and not pointer.startswith("/"):
        raise fields.wrong("pointer", f'is {pointer!r}; write a JSON pointer such as "/queue/depth"')
    return HttpNumber(url, pointer)


LIMIT_MOST = 1e300
EXAMPLE = {"kind": KIND, "limit": 100, "url": "http://127.0.0.1:8080/load", "pointer": "/queue/depth"}
