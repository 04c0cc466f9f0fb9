"""Dividing a rollout's traffic: a canary's percentage, its shadow, and the end of both. One transaction, with its audit row."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.core.traffic import WHOLE, Split
from orchestrator.errors import ConflictError, NotCertifiedError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import traffic as traffic_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.contracts import obstacles_of
from orchestrator.service.rollouts import locked, reread
from orchestrator.service.wakeups import relay, request_wakeup

# A canary is of a rollout that serves and is not decided.
CHANGEABLE = (
    RolloutState.DEPLOYED,
    RolloutState.BACKFILLING,
    RolloutState.PAUSED,
    RolloutState.FINALIZABLE,
)


def divide(
    connection: Connection, rollout_id: int, canary: float | None, shadow: float, actor: str
) -> Split | None:
    """Divide the traffic of a rollout that is about to start; None: it is not, the new system answers everything.

    Raises:
        UsageError: a percentage or a part that is none.
    """
    if canary is None and not shadow:
        return None
    split = _split(0.0 if canary is None else canary, shadow)
    if split.over and split.shadow:
        raise UsageError(
            "with --canary 100 the old system is not held, so there is no shadow; say less, or 0."
        )
    traffic_queries.add_change(connection, rollout_id, split, actor)
    return split


def change(
    context: Context, name: str | int, canary: float | None = None, shadow: float | None = None
) -> RolloutRow:
    """Divide a running canary's traffic anew; what is None stays. At 100 percent it is over, and with it the shadow.

    Every replica sees it in its gallery's log. Saying what holds already changes nothing.

    Raises:
        ConflictError: the rollout's state, or it has no canary, or that is over.
        NotCertifiedError: more traffic for the new system would break a downstream module.
        UsageError: a percentage or a part that is none.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        _check_state(row)
        now = traffic_queries.split_of(connection, row.id)
        if now is None or now.over:
            raise ConflictError(
                f"rollout {row.id} is {row.state} and "
                + (
                    "was started without a canary"
                    if now is None
                    else "its canary is over: the old system is not held any more"
                )
                + f"; all traffic goes to the new system. Take it back with `hotrefresh rollout rollback {row.id}`."
            )
        wanted = _split(now.canary if canary is None else canary, now.shadow if shadow is None else shadow)
        wanted = WHOLE if wanted.over else wanted
        if wanted.canary > now.canary:
            gallery = gallery_queries.gallery_by_id(connection, row.gallery_id)
            if sentences := obstacles_of(connection, gallery, row):
                raise NotCertifiedError(" ".join(sentences))
        if wanted != now:
            _write(connection, row, now, wanted, context.actor)
    relay(context)
    return reread(context, row.id)


def under_way(context: Context, name: str | int) -> Split | None:
    """How a rollout's traffic is divided while its canary is not over; None otherwise."""
    with transaction(context.engine) as connection:
        return traffic_queries.canary_under_way(connection, locked(connection, name).id)


def _check_state(row: RolloutRow) -> None:
    if row.kind != "upgrade" or row.state not in CHANGEABLE:
        raise ConflictError(
            f"rollout {row.id} is {row.state}: canary is not possible. It is of an upgrade that is "
            f"{', '.join(CHANGEABLE[:-1])} or {CHANGEABLE[-1]}."
        )


def _split(canary: float, shadow: float) -> Split:
    try:
        return Split(float(canary), float(shadow))
    except ValueError as error:
        raise UsageError(f"{error}.") from None


def _write(connection: Connection, row: RolloutRow, before: Split, after: Split, actor: str) -> None:
    traffic_queries.add_change(connection, row.id, after, actor)
    log_queries.append_log_event(connection, row.gallery_id, row.id, "traffic")
    rollout_queries.write_audit(
        connection,
        actor=actor,
        action="rollout.traffic",
        target=str(row.id),
        before=vars(before),
        after=vars(after),
    )
    if row.finalize_asked_by is not None:
        request_wakeup(connection, "finalize", row.id)
