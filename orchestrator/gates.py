"""`[[gate]]` tables of the configuration: checked at submit, and their resolved copy is stored with the rollout.

The judging is `core.gates`'s, what follows is `service.gates`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.gates import MEASURES, Effect, Gate
from orchestrator.errors import UsageError
from orchestrator.settings import CHURN_K
from orchestrator.table_fields import Fields
from orchestrator.throttles import KINDS, Probe

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_OUTSIDE = ("sql", "http")
"""Measures that are probes of `orchestrator.throttles`: a number from a read-only SELECT, or from an endpoint."""
_EFFECTS = (Effect.PAUSE, Effect.ROLLBACK, Effect.ALERT)


@dataclass(frozen=True)
class Configured:
    """A gate, the probe that measures it where that is somebody else's business, and its keys with every default."""

    gate: Gate
    probe: Probe | None
    table: Mapping[str, Any]


def parse_gates(tables: Sequence[Mapping[str, Any]]) -> tuple[Configured, ...]:
    """The configured gates, in order.

    Raises:
        UsageError: the first mistake, in one sentence.
    """
    if isinstance(tables, str | Mapping) or not isinstance(tables, Sequence):
        raise UsageError("gate is not a list of tables; write each one under [[gate]].")
    found = tuple(_parse(table, number) for number, table in enumerate(tables, 1))
    names = [each.gate.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'two gates are named {name!r}; give one of them another name = "…".')
    return found


def resolved(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tables with every default filled in; they parse to the same gates.

    Raises:
        UsageError: the first mistake, in one sentence.
    """
    return [dict(each.table) for each in parse_gates(tables)]


def depths(tables: Sequence[Mapping[str, Any]], *, of_churn: bool) -> set[int]:
    """The k that resolved gates read churn at, or flips and clicks."""
    return {table["k"] for table in tables if "k" in table and (table["measure"] == "churn") is of_churn}


def _depth(fields: Fields, measure: str) -> int:
    if measure != "churn":
        return max(1, fields.whole("k", 1))
    k = fields.whole("k", CHURN_K)
    if not 1 <= k <= 100:
        raise fields.wrong("k", f"is {k}; write a whole number from 1 to 100")
    return k


def _parse(table: Any, number: int) -> Configured:
    if not isinstance(table, Mapping):
        raise UsageError(f"gate {number} is no table; write it under [[gate]].")
    fields = Fields(table, f"gate {number}")
    measure = fields.choice("measure", (*MEASURES, *_OUTSIDE))
    fields.where += f" ({measure})"
    name = fields.text("name", measure)
    if not _NAME.fullmatch(name):
        raise fields.wrong("name", f"is {name!r}; write small letters, digits and _, 41 at most")
    inside = measure in MEASURES
    of_queries = inside and measure != "quarantine_rate"
    limit = fields.number("limit", above=-1.0, most=1.0) if inside else fields.number("limit")
    gate = Gate(
        name=name,
        measure=measure,
        limit=limit,
        minimum_n=fields.whole("minimum_n", 100) if inside else 0,
        confidence=fields.number("confidence", 0.95, above=0.5, most=0.999999) if inside else 0.0,
        failure_limit=fields.whole("failure_limit", 0),
        inconclusive_limit=fields.whole("inconclusive_limit", 0),
        error_limit=fields.whole("error_limit", 3),
        effect=Effect(fields.choice("effect", _EFFECTS, Effect.PAUSE.value)),
        dry_run=fields.truth("dry_run", False),
        query_set=fields.text("query_set", "") if of_queries else "",
        slice=fields.text("slice", "all") if of_queries else "all",
        k=_depth(fields, measure) if of_queries else 1,
    )
    probe = None if inside else KINDS[measure].build(fields, limit)
    fields.finish()
    return Configured(gate, probe, fields.resolved)
