"""Downstream contracts: a rollout that would break a module in use is refused, and the module is named.

Asked where a new model takes over more of a gallery: before a start (and in its plan), before a canary widens, and before
a rollout is finalized. What is refused between two of these stops neither searches nor workers: searches do not need the module,
and `doctor` says it meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.certificate import Verdict
from orchestrator.core.contracts import Broken, Contract, Obstacle, broken
from orchestrator.core.states import RolloutState
from orchestrator.core.strategies import Strategy
from orchestrator.errors import NotCertifiedError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import downstream as queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ModelRow, RolloutRow
from orchestrator.service.wakeups import request_wakeup

UNDECIDED = (
    RolloutState.PLANNED,
    RolloutState.DEPLOYED,
    RolloutState.BACKFILLING,
    RolloutState.PAUSED,
    RolloutState.FINALIZABLE,
)


def check_contracts(
    connection: Connection,
    gallery: GalleryRow,
    before: Sequence[ModelRow],
    new: ModelRow,
    strategy: Strategy,
) -> None:
    """Raises NotCertifiedError naming every module that the new model would break.

    Args:
        before: the models that the gallery serves and holds until now.
    """
    sentences = obstacles(connection, gallery.name, before, new, strategy)
    if sentences:
        raise NotCertifiedError(" ".join(sentences))


def obstacles(
    connection: Connection, gallery: str, before: Sequence[ModelRow], new: ModelRow, strategy: Strategy
) -> list[str]:
    """One sentence for each module that a rollout would break, with what to do about it."""
    found = _broken(connection, [model.id for model in before], new, changes_space=strategy.holds_vectors)
    return [_sentence(each, own, new, gallery) for each, own in found]


def first_broken(connection: Connection, before: Sequence[int], new: ModelRow) -> str | None:
    """The name of the first module that could be certified and is not; None where nothing stands against new vectors.

    Args:
        before: ids of the models that the gallery serves and holds.
    """
    found = _broken(connection, before, new, changes_space=True)
    return next((each.module for each, _ in found if each.why is not Obstacle.DIM), None)


def _broken(
    connection: Connection, before: Sequence[int], new: ModelRow, *, changes_space: bool
) -> list[tuple[Broken, str]]:
    """What a rollout would break, each with the name of the model that it was made for."""
    rows = queries.contracts(connection, new.id, list(before))
    own = {row.module: row.model for row in rows}
    known = [
        Contract(
            row.module,
            row.space,
            row.dim,
            row.serves,
            None if row.verdict is None else Verdict(row.verdict),
            row.reason or "",
        )
        for row in rows
    ]
    found = broken(known, new.fingerprint, new.dim, changes_space=changes_space)
    return [(each, own[each.module]) for each in found]


def obstacles_of(connection: Connection, gallery: GalleryRow, rollout: RolloutRow) -> list[str]:
    """The same for a rollout that was started: modules registered since, and certificates that were refused since."""
    if rollout.from_model_id is None:
        return []
    before = [model_queries.model_by_id(connection, rollout.from_model_id)]
    # Where a query adapter served, the vectors were another model's.
    holder = rollout_queries.newest_holder(connection, gallery.id, rollout.id)
    if holder is not None and holder.to_model_id != rollout.from_model_id:
        before.append(model_queries.model_by_id(connection, holder.to_model_id))
    new = model_queries.model_by_id(connection, rollout.to_model_id)
    return obstacles(connection, gallery.name, before, new, rollout.how)


def broken_meanwhile(context: Context) -> list[tuple[int, str]]:
    """The rollouts under way that would not be started any more, each with the sentence about one module."""
    with transaction(context.engine) as connection:
        latest = [
            (gallery, rollout_queries.latest_rollout(connection, gallery.id))
            for gallery in gallery_queries.list_galleries(connection)
        ]
        return [
            (rollout.id, sentence)
            for gallery, rollout in latest
            if rollout is not None and rollout.state in UNDECIDED
            for sentence in obstacles_of(connection, gallery, rollout)
        ]


def ask_again(connection: Connection) -> None:
    """Wake the rollouts that shall be finalized when nothing stands against it: a module may have been what did."""
    for rollout in rollout_queries.active_rollouts(connection):
        if rollout.finalize_asked_by is not None:
            request_wakeup(connection, "finalize", rollout.id)


def _sentence(each: Broken, own: str, new: ModelRow, gallery: str) -> str:
    retire = f"or, if nobody uses it any more, `hotrefresh downstream retire {each.module}`"
    certify = f"`hotrefresh downstream certify {each.module} {new.name} --gallery {gallery}"
    if each.why is Obstacle.DIM:
        return (
            f"downstream module {each.module!r} takes {each.dim} dimensions of {own!r}, and {new.name!r} emits {new.dim}: it "
            "would break. Take a model that emits that space "
            f"(`hotrefresh model adapt-encoder NAME --new {new.name} --old {own} --data SOURCE`), {retire}."
        )
    if each.why is Obstacle.UNMEASURED:
        return (
            f"downstream module {each.module!r}, made for {own!r}, was never measured with {new.name!r}: it may break. "
            f"Run {certify}` first, {retire}."
        )
    return (
        f"downstream module {each.module!r}, made for {own!r}, was refused with {new.name!r}: {each.reason.rstrip('.')}. "
        f"Take a better model, or accept that loss with {certify} --loss LOSS`, {retire}."
    )
