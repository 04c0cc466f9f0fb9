"""Throttles by kind. A new kind is one new file with `KIND`, `build`, `LIMIT_MOST` and `EXAMPLE`, and one line here.

`[[throttle]]` tables of the configuration are checked at submit (`parse_throttles`), their resolved copy is stored with the
rollout (`resolved`), and each worker asks a `ThrottleMonitor` about once a second. The judging is `core.throttle`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from orchestrator.core.throttle import RESUME_RATIO
from orchestrator.errors import UsageError
from orchestrator.table_fields import Fields
from orchestrator.throttles import gpu_memory, hours, http_number, replica_lag, serving_p95, sql
from orchestrator.throttles.base import Probe, ProbeError, ProbeRefused, Surroundings

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


@dataclass(frozen=True)
class Kind:
    """One kind of probe: how a table becomes one, and the highest limit that makes sense (None: it has no limit)."""

    build: Callable[[Fields, float], Probe]
    limit_most: float | None
    example: Mapping[str, Any]


KINDS = MappingProxyType(
    {
        module.KIND: Kind(module.build, module.LIMIT_MOST, module.EXAMPLE)
        for module in (serving_p95, replica_lag, sql, http_number, gpu_memory, hours)
    }
)


@dataclass(frozen=True)
class Throttle:
    """One configured throttle.

    Attributes:
        limit, resume_below: in the probe's unit.
        every_s: seconds between two reads.
        patience_s: how long the probe may be silent before that throttles.
        table: the keys as written, with every default filled in.
    """

    name: str
    kind: str
    limit: float
    resume_below: float
    every_s: float
    patience_s: float
    probe: Probe
    table: Mapping[str, Any]


def parse_throttles(tables: Sequence[Mapping[str, Any]]) -> tuple[Throttle, ...]:
    """The configured throttles, in order.

    Raises:
        UsageError: the first mistake, in one sentence.
    """
    if isinstance(tables, str | Mapping) or not isinstance(tables, Sequence):
        raise UsageError("throttle is not a list of tables; write each one under [[throttle]].")
    parsed = [_parse(table, number) for number, table in enumerate(tables, 1)]
    names = [throttle.name for throttle in parsed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'two throttles are named {name!r}; give one of them another name = "…".')
    return tuple(parsed)


def resolved(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tables with every default filled in, to be stored with the rollout; they parse to the same throttles.

    Raises:
        UsageError: the first mistake, in one sentence.
    """
    return [dict(throttle.table) for throttle in parse_throttles(tables)]


def _parse(table: Any, number: int) -> Throttle:
    if not isinstance(table, Mapping):
        raise UsageError(f"throttle {number} is no table; write it under [[throttle]].")
    fields = Fields(table, f"throttle {number}")
    kind_name = fields.choice("kind", tuple(KINDS))
    fields.where += f" ({kind_name})"
    kind = KINDS[kind_name]
    name = fields.text("name", kind_name)
    if not _NAME.fullmatch(name):
        raise fields.wrong("name", f"is {name!r}; write small letters, digits and _, 41 at most")
    common: dict[str, float] = {}
    if kind.limit_most is not None:
        common["limit"] = fields.number("limit", above=0, most=kind.limit_most)
        most = common["limit"]
        common["resume_below"] = fields.number("resume_below", RESUME_RATIO * most, above=0, most=most)
    common["every_s"] = fields.number("every_s", 5.0, above=0, most=3600)
    common["patience_s"] = fields.number("patience_s", 30.0, above=0, most=3600)
    limit = common.get("limit", 0.0)
    probe = kind.build(fields, limit)
    fields.finish()
    return Throttle(
        name,
        kind_name,
        limit,
        common.get("resume_below", 0.0),
        common["every_s"],
        common["patience_s"],
        probe,
        fields.resolved,
    )


__all__ = [
    "KINDS",
    "Kind",
    "Probe",
    "ProbeError",
    "ProbeRefused",
    "Surroundings",
    "Throttle",
    "parse_throttles",
    "resolved",
]
