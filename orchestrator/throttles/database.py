"""Faults of a database, as a probe reports them: one sentence without the URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from orchestrator.ledger.queries.measurements import NoScalarError
from orchestrator.throttles.base import ProbeError


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what the driver raises into ProbeError."""
    try:
        yield
    except NoScalarError as error:
        raise ProbeError(f"{what}: {error}") from None
    except psycopg.Error as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProbeError(f"{what} does not answer: {first}") from None
