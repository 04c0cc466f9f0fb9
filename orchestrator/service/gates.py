"""What gates do to a rollout: judged after every evaluated batch, written down, and acted upon in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.churn import Churn
from orchestrator.core.flips import FlipCounts
from orchestrator.core.gates import (
    MEASURES,
    NEEDS,
    Decision,
    Effect,
    Gate,
    Measured,
    Result,
    Sample,
    Tally,
    act,
    decide,
    outside,
)
from orchestrator.core.relevance import RelevanceKind
from orchestrator.core.states import RolloutState, Verb
from orchestrator.gates import parse_gates
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries.flips import WHOLE
from orchestrator.ledger.queries.gates import now_there
from orchestrator.ledger.rows import GateDecisionRow, RolloutRow
from orchestrator.service.rollouts import locked, move, reread, take_back
from orchestrator.service.wakeups import relay
from orchestrator.serving.evaluator import Recorded
from orchestrator.throttles import Probe, ProbeError, Surroundings

ACTOR = "gate"
CountsOf = Callable[[int, str], tuple[FlipCounts, FlipCounts] | None]
"""Of a query set: k and slice → counts against the old system and against the previous stage; None: not counted."""
ChurnOf = Callable[[str], Churn | None]
"""Of a query set: slice → churn against the old system; None: not measured."""
_NO_FLIPS = FlipCounts(0, 0, 0, 0)
Tell = Callable[..., None]
"""Writes a log line: event, level, keywords."""


def tell_nobody(event: str, **keywords: object) -> None:
    """For callers that write no log."""


_GOING_ON = (RolloutState.DEPLOYED, RolloutState.BACKFILLING)
_WORDS = {Result.PASS: "passed", Result.FAIL: "failed", Result.INCONCLUSIVE: "inconclusive"}
_SEVERITY = (Effect.NONE, Effect.ALERT, Effect.PAUSE, Effect.ROLLBACK)


@dataclass(frozen=True)
class Counted:
    """What a query set counts at one stage."""

    relevance: RelevanceKind
    counts_of: CountsOf
    churn_of: ChurnOf


class Gatekeeper:
    """The gates of one rollout. `tell` hears of answers that are new, and of those with an effect."""

    def __init__(self, context: Context, rollout_id: int, tell: Tell = tell_nobody) -> None:
        self._context = context
        self._rollout_id = rollout_id
        self._tell = tell
        self._judged_until: int | None = None

    def judge(self, seq: int, recorded: Sequence[Recorded]) -> None:
        """Judge the gates on what was counted up to a log entry; what was judged before is left alone.

        An evaluator that begins anew replays a long history: this is asked once what it need not look at.
        """
        if self._judged_until is None:
            with self._context.engine.connect() as connection:
                self._judged_until = gate_queries.judged_until(connection, self._rollout_id, list(MEASURES))
        if seq <= self._judged_until:
            return
        row = reread(self._context, self._rollout_id)
        gates = [each.gate for each in parse_gates(row.config.get("gates") or []) if each.probe is None]
        counted = {
            each.query_set: Counted(each.relevance, each.stages.counts, each.stages.churn.get)
            for each in recorded
        }
        readings = [
            (gate, query_set, measured)
            for gate in gates
            for query_set, measured in measured_of(gate, counted, row)
        ]
        self._decide(seq, readings)

    def ask_outside(self) -> None:
        """Judge the gates whose numbers somebody else measures; nobody waits for a lock while they are asked."""
        row = reread(self._context, self._rollout_id)
        asked = [each for each in parse_gates(row.config.get("gates") or []) if each.probe is not None]
        if asked:
            with self._context.engine.connect() as connection:
                seq = log_queries.last_seq(connection, row.gallery_id)
                now = now_there(connection)
            around = Surroundings(self._context.engine, now)
            self._decide(seq, [(each.gate, "", read_probe(each.probe, around)) for each in asked], again=True)

    def _decide(
        self, seq: int, readings: Sequence[tuple[Gate, str, Measured]], *, again: bool = False
    ) -> None:
        """Decide, write down and carry out in one transaction; `again`: also what was judged at this log entry."""
        if not readings:
            return
        given: list[Answer] = []
        with transaction(self._context.engine) as connection:
            row = locked(connection, self._rollout_id)
            for gate, query_set, measured in readings:
                answer = _judged(connection, row, gate, query_set, measured, seq, again=again)
                if answer is not None:
                    given.append(answer)
            if given:
                _carry_out(connection, row, max(given, key=lambda each: _SEVERITY.index(each.effect)))
        for answer in given:
            if answer.is_new or answer.effect is not Effect.NONE:
                _say(self._tell, row, answer)
        if any(answer.effect is Effect.ROLLBACK for answer in given):
            relay(self._context)


@dataclass(frozen=True)
class Answer:
    """What a gate answered about a query set, and what follows; `is_new`: it answered otherwise before."""

    gate: Gate
    query_set: str
    decision: Decision
    effect: Effect
    is_new: bool


def _carry_out(connection: Connection, row: RolloutRow, answer: Answer) -> None:
    gate, decision = answer.gate, answer.decision
    about = f" on {answer.query_set}" if answer.query_set else ""
    reason = f"gate {gate.name}{about}: {_WORDS[decision.result]}, {gate.measure} {decision.reason}"
    if answer.effect is Effect.PAUSE and row.state in _GOING_ON:
        move(connection, row, Verb.PAUSE, actor=ACTOR, reason=reason)
    undoable = (*_GOING_ON, RolloutState.PAUSED, RolloutState.FINALIZABLE)
    if answer.effect is Effect.ROLLBACK and row.state in undoable:
        take_back(connection, row, Verb.ROLLBACK, ACTOR, reason)


def read_probe(probe: Probe | None, around: Surroundings) -> Measured:
    """An outside number; whatever goes wrong is an answer that is missing."""
    assert probe is not None
    try:
        return outside(probe.read(around))
    except ProbeError as error:
        return outside(None, str(error))


def measured_of(
    gate: Gate, counted: Mapping[str, Counted], row: RolloutRow
) -> Iterator[tuple[str, Measured]]:
    """What a gate reads of each query set that it is about; a missing one is a number that is missing.

    Args:
        counted: what each query set of the gallery counts, by its name.
    """
    named = {name: each for name, each in counted.items() if gate.query_set in ("", name)}
    about = {
        name: each for name, each in named.items() if each.relevance in NEEDS.get(gate.measure, RelevanceKind)
    }
    if not about:
        yield gate.query_set, Measured(None, 0, None, _nothing_to_judge(gate, bool(named)))
    for name, each in about.items():
        sample = _sample(gate, each, row)
        if isinstance(sample, str):
            yield name, Measured(None, 0, None, sample)
        else:
            yield name, MEASURES[gate.measure](sample, gate.confidence)


def _nothing_to_judge(gate: Gate, others: bool) -> str:
    what = f"query set {gate.query_set!r}" if gate.query_set else "query set"
    if not others:
        return f"the gallery has no {what}"
    lacks = "clicks" if gate.measure == "click_loss_rate" else "relevance by label or pairs"
    return f"{what} has no {lacks}" if gate.query_set else f"no query set of the gallery has {lacks}"


def _sample(gate: Gate, counted: Counted, row: RolloutRow) -> Sample | str:
    """What a gate reads of a query set, or why there is nothing to read."""
    where = f"k = {gate.k}" + (f" in slice {gate.slice!r}" if gate.slice != WHOLE else "")
    counts, churned, compared = (_NO_FLIPS, _NO_FLIPS), None, 0
    if gate.measure == "churn":
        churn = counted.churn_of(gate.slice)
        if churn is None or gate.k > churn.k:
            return f"no churn is measured at {where}"
        churned, compared = churn.churn(gate.k), churn.n
    elif gate.measure != "quarantine_rate":
        found = counted.counts_of(gate.k, gate.slice)
        if found is None:
            what = "clicks" if gate.measure == "click_loss_rate" else "flips"
            return f"no {what} are counted at {where}"
        counts = found
    return Sample(
        *counts,
        embedded=row.committed_items,
        quarantined=row.quarantined_items,
        churn=churned,
        compared=compared,
    )


def _judged(
    connection: Connection,
    row: RolloutRow,
    gate: Gate,
    query_set: str,
    measured: Measured,
    seq: int,
    *,
    again: bool,
) -> Answer | None:
    """Judge and write down; None where it was judged at this log entry already."""
    newest = gate_queries.newest_decision(connection, row.id, gate.name, query_set)
    if newest is not None and newest.seq >= seq and not again:
        return None
    decision = decide(gate, measured)
    effect, _ = act(gate, decision, tally_until(connection, row.id, newest))
    same = newest is not None and (newest.result, newest.error, newest.dry_run) == (
        decision.result, decision.error, gate.dry_run,
    )  # fmt: skip
    if newest is not None and same:
        gate_queries.repeat_decision(
            connection,
            newest.id,
            value=decision.value,
            sample_n=decision.n,
            effect=effect.value,
            seq=seq,
            reason=decision.reason,
        )
    else:
        gate_queries.insert_decision(
            connection,
            rollout_id=row.id,
            gate=gate.name,
            query_set=query_set,
            measure=gate.measure,
            slice=gate.slice,
            k=gate.k,
            result=decision.result.value,
            value=decision.value,
            limit=decision.limit,
            sample_n=decision.n,
            dry_run=gate.dry_run,
            effect=effect.value,
            seq=seq,
            reason=decision.reason,
            error=decision.error,
        )
    return Answer(gate, query_set, decision, effect, not same)


def tally_until(connection: Connection, rollout_id: int, newest: GateDecisionRow | None) -> Tally:
    """How often such answers were given in a row up to the newest one: the ledger remembers it, a process may die."""
    if newest is None or newest.result == Result.PASS:
        return Tally()
    if newest.result == Result.FAIL:
        return Tally(failures=newest.times)
    chances, errors = gate_queries.inconclusive_in_row(connection, rollout_id, newest.gate, newest.query_set)
    return Tally(inconclusives=chances, errors=errors)


def _say(tell: Tell, row: RolloutRow, answer: Answer) -> None:
    gate, decision = answer.gate, answer.decision
    tell(
        f"gate.{_WORDS[decision.result]}",
        level="info" if answer.effect is Effect.NONE else "warning",
        rollout_id=row.id,
        gate=gate.name,
        queryset=answer.query_set,
        measure=gate.measure,
        value=decision.value,
        limit=decision.limit,
        n=decision.n,
        reason=decision.reason,
        effect=answer.effect.value,
        dry_run=gate.dry_run,
    )
