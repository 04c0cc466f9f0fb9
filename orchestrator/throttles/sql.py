"""`sql`: a number from one read-only SELECT, on the ledger's database or one that an environment variable names."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.ledger.queries.measurements import read_scalar
from orchestrator.table_fields import Fields
from orchestrator.throttles.base import TIMEOUT_S, ProbeError, Surroundings
from orchestrator.throttles.database import reaching

KIND = "sql"
# What is not code: comments, texts, quoted names, dollar-quoted texts.
_NOT_CODE = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | [eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | (\$\w*\$).*?\1""",
    re.S | re.X,
)
_READS = re.compile(r"(select|with)\b", re.I)
_WRITES = re.compile(r"\b(insert|update|delete|merge|into)\b", re.I)


class SqlNumber:
    """Any unit: the statement's. 2 s at most; the transaction is read-only."""

    def __init__(self, statement: str, variable: str | None) -> None:
        self._statement = statement
        self._variable = variable

    def read(self, surroundings: Surroundings) -> float | None:
        """The number that the statement gives now."""
        with reaching("the throttle's database"):
            value = read_scalar(self._url(surroundings), self._statement, TIMEOUT_S)
        return _number(value)

    def _url(self, surroundings: Surroundings) -> URL:
        if self._variable is None:
            return surroundings.engine.url
        text = surroundings.environment.get(self._variable, "")
        try:
            url = make_url(text)
        except ArgumentError:  # its message holds the text
            url = None
        if url is None or not url.drivername.startswith("postgres"):
            raise ProbeError(
                f"environment variable {self._variable} is not set to a PostgreSQL URL in this worker"
            )
        return url


def _number(value: Any) -> float:
    try:
        if value is None or isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ProbeError(f"the statement gave {str(value)[:40]!r}, which is no number") from None


def build(fields: Fields, limit: float) -> SqlNumber:
    """The probe of one table: `query`, and `database_url_env` for a database other than the ledger's."""
    statement = fields.text("query").strip()
    code = _NOT_CODE.sub(" ", statement).strip()
    body = code.removesuffix(";").strip()
    if not _READS.match(body) or ";" in body or _WRITES.search(body):
        raise fields.wrong("query", "is not a single SELECT; write one statement that reads one number")
    return SqlNumber(statement, fields.variable("database_url_env"))


LIMIT_MOST = 1e300
EXAMPLE = {"kind": KIND, "limit": 0.5, "query": "SELECT pg_notification_queue_usage()"}
