"""Gates tried on a rollout before they are set: what each would answer to the numbers of now. Nothing is written or moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.churn import Churn
from orchestrator.core.flips import FlipCounts
from orchestrator.core.gates import Gate, Measured, act, decide
from orchestrator.core.relevance import RelevanceKind
from orchestrator.errors import ConflictError
from orchestrator.gates import Configured, parse_gates
from orchestrator.ledger.queries import churn as churn_queries
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.rows import EvaluationRow, QuerySetRow, RolloutRow
from orchestrator.service.gates import Counted, measured_of, read_probe, tally_until
from orchestrator.service.names import find_rollout
from orchestrator.throttles import Surroundings


@dataclass(frozen=True)
class Trial:
    """What a gate would answer about a query set.

    Attributes:
        least: the value is at least so much with the gate's confidence; it fails where that is above the limit.
        effect: what would follow now, after what the ledger has of a gate of this name.
    """

    gate: str
    queryset: str
    measure: str
    slice: str
    k: int
    result: str
    value: float | None
    least: float | None
    limit: float
    sample_n: int
    effect: str
    dry_run: bool
    reason: str


def try_gates(context: Context, name: str, tables: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Judge `[[gate]]` tables on where a rollout stands; what is measured outside is asked for.

    Raises:
        UsageError: a mistake in a table.
        ConflictError: a first embedding has no gates.
    """
    configured = parse_gates(tables)
    with context.engine.connect() as connection:
        row = find_rollout(connection, name)
        if row.kind != "upgrade":
            raise ConflictError(
                f"rollout {row.id} is the first embedding of its gallery: there is nothing to flip, and no gate is asked."
            )
        counted = {
            each.name: _counted(connection, row.id, each)
            for each in gallery_queries.query_sets_of_gallery(connection, row.gallery_id)
        }
        around = Surroundings(context.engine, gate_queries.now_there(connection))
        return [
            _tried(connection, row, each.gate, query_set, measured)
            for each in configured
            for query_set, measured in _readings(each, counted, row, around)
        ]


def _readings(
    each: Configured, counted: Mapping[str, Counted], row: RolloutRow, around: Surroundings
) -> Iterator[tuple[str, Measured]]:
    if each.probe is not None:
        yield "", read_probe(each.probe, around)
    else:
        yield from measured_of(each.gate, counted, row)


def _counted(connection: Connection, rollout_id: int, query_set: QuerySetRow) -> Counted:
    relevance = RelevanceKind(query_set.relevance)
    tables = flip_queries.CLICKS if relevance is RelevanceKind.CLICKS else flip_queries.FLIPS

    def counts_of(k: int, slice_: str) -> tuple[FlipCounts, FlipCounts] | None:
        row = flip_queries.newest_evaluation(connection, rollout_id, query_set.id, k, slice_, tables)
        return None if row is None else (_against_old(row), _against_previous(row))

    def churn_of(slice_: str) -> Churn | None:
        row = churn_queries.newest_churn(connection, rollout_id, query_set.id, slice_)
        return None if row is None else Churn(row.n, tuple(row.shared))

    return Counted(relevance, counts_of, churn_of)


def _against_old(row: EvaluationRow) -> FlipCounts:
    return FlipCounts(row.both_right, row.negative_flips, row.positive_flips, row.both_wrong)


def _against_previous(row: EvaluationRow) -> FlipCounts:
    """The ledger has the flips of the last stage; who is right now is the same against any reference."""
    negative, positive = row.previous_negative_flips, row.previous_positive_flips
    both_right = _against_old(row).right_now - positive
    return FlipCounts(both_right, negative, positive, row.n - both_right - negative - positive)


def _tried(connection: Connection, row: RolloutRow, gate: Gate, query_set: str, measured: Measured) -> Trial:
    decision = decide(gate, measured)
    newest = gate_queries.newest_decision(connection, row.id, gate.name, query_set)
    effect, _ = act(gate, decision, tally_until(connection, row.id, newest))
    return Trial(
        gate=gate.name,
        queryset=query_set,
        measure=gate.measure,
        slice=gate.slice,
        k=gate.k,
        result=decision.result.value,
        value=decision.value,
        least=measured.least if decision.value is not None else None,
        limit=decision.limit,
        sample_n=decision.n,
        effect=effect.value,
        dry_run=gate.dry_run,
        reason=decision.reason,
    )
