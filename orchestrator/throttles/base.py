"""What every probe is: a check of its table at submit, and a read that gives a number, nothing, or a reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import Engine

# A probe's own limit on anything it waits for. The monitor's deadline is a little longer: it is the second line.
TIMEOUT_S = 2.0


class ProbeError(Exception):
    """A probe could not answer; the message says why, without secrets."""


class ProbeRefused(ProbeError):  # noqa: N818 (an answer, not a fault)
    """An endpoint answered, with a status that asks us to hold back."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the endpoint answered with status {status}")
        self.status = status


@dataclass(frozen=True)
class Surroundings:
    """What a read may use.

    Attributes:
        now: this moment, aware of its time zone.
        environment: where the names of secrets lead to their values.
    """

    engine: Engine
    now: datetime
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


class Probe(Protocol):
    """One measurement. It may keep what it read before: the monitor never reads one probe twice at a time."""

    def read(self, surroundings: Surroundings) -> float | None:
        """The value now; None: there is nothing to measure here.

        Raises:
            ProbeError: it could not be measured.
            ProbeRefused: an endpoint asks us to hold back.
        """
        ...
