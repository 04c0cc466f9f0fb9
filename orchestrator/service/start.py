"""Starting an upgrade: everything that can be said against it first, then one transaction, then the new model serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import ACTIVE, RolloutState, Verb
from orchestrator.core.strategies import Direction, Strategy, UnfitStrategyError, choose
from orchestrator.errors import ConflictError, NotCertifiedError, UsageError
from orchestrator.failpoints import reach
from orchestrator.gates import depths
from orchestrator.gates import resolved as resolved_gates
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import traffic as traffic_queries
from orchestrator.ledger.rows import AdapterRow, CertificateRow, GalleryRow, ModelRow, RolloutRow
from orchestrator.service.certify_codes import check_codecs
from orchestrator.service.contracts import check_contracts
from orchestrator.service.mixing import certified_uncalibrated, resolved_calibration, resolved_guard
from orchestrator.service.modalities import check_embeddable
from orchestrator.service.names import find_adapter, find_gallery, find_model
from orchestrator.service.pairs import require_certificate, require_towers, simulated_curve
from orchestrator.service.rollouts import locked, move, reread
from orchestrator.service.scoring import check_order
from orchestrator.service.stored import holder_of
from orchestrator.service.traffic import divide
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.store import new_folder
from orchestrator.throttles import resolved

ROLLBACK_WINDOW = timedelta(days=7)
# The part of the last 1,000 items that may go into quarantine before the rollout is paused.
FAILURE_BUDGET = 0.01


@dataclass(frozen=True)
class StartRequest:
    """What `plan` shows and `start` does.

    Attributes:
        strategy: name of a row of `core.strategies`; None: the usual one for the adapter.
        order: name of a backfill order (`core.orders`); None: the usual one for the strategy.
        demand_base: the order whose scores the order demand weights.
        reorder: what revisions of the plan follow while it is worked on (`core.healing.MEASURES`); None: it stays.
        prototypes: auto, head (the new model's), classes (means by label) or clusters (k-means).
        temperature: of the softmax over prototypes.
        lane: which rollout workers take first: urgent, backfill or repair.
        supersede: take the place of a rollout that still runs; what it committed stays in use.
        calibration: auto: as the certificate says; off: raw scores.
        guard: the old model helps with the queries at risk, while the refresh runs.
        canary: percent of the traffic that the new model answers; None: all of it, or with a shadow none.
        shadow: part of the queries that both systems answer, 0..1; it ends with the canary.
    """

    gallery: str
    to_model: str
    adapter: str | None = None
    strategy: str | None = None
    order: str | None = None
    batch_size: int | None = None
    prototypes: str = "auto"
    temperature: float = 0.05
    seed: int = 0
    lease_s: float | None = None
    lane: str = "backfill"
    supersede: bool = False
    demand_base: str = "entropy"
    reorder: str | None = None
    calibration: str = "auto"
    guard: bool = False
    canary: float | None = None
    shadow: float = 0.0


@dataclass(frozen=True)
class Checked:
    """A request with everything it names found and allowed.

    Attributes:
        old: the model that serves; a rollback returns to it.
        stored: the model whose space the stored vectors are in; `old`, unless a query adapter leads there.
        asked_calibration: "auto" or "off": as requested, and off where towers ask.
    """

    gallery: GalleryRow
    running: RolloutRow | None
    old: ModelRow
    stored: ModelRow
    new: ModelRow
    adapter: AdapterRow | None
    strategy: Strategy
    order: str
    certificate: CertificateRow
    batch_size: int
    config: dict[str, Any]
    asked_calibration: str


def check_start(context: Context, connection: Connection, request: StartRequest) -> Checked:
    """Everything that can be said against a start, before anything is written.

    Raises:
        NotFoundError, ConflictError: a name, or the gallery's state.
        NotCertifiedError: the pair of models, or a downstream module with the new one, was never measured, or was refused.
        InconclusiveError: it was measured on too little.
        UsageError: an order that a rollout, or this one, cannot use.
        ConflictError: an order that follows demand, and there is none.
    """
    gallery = item_queries.lock_gallery(connection, find_gallery(connection, request.gallery).id)
    new = find_model(connection, request.to_model)
    serving = rollout_queries.serving_now(connection, gallery.id)
    if serving is None:
        raise ConflictError(
            f"gallery {gallery.name!r} has no embeddings yet; run `hotrefresh gallery embed {gallery.name} --model NAME`."
        )
    latest = rollout_queries.latest_rollout(connection, gallery.id)
    running = latest if latest is not None and RolloutState(latest.state) in ACTIVE else None
    if running is not None:
        _check_supersede(connection, gallery, running, request)
    old = model_queries.model_by_id(connection, serving.model_id)
    stored = holder_of(connection, gallery)
    if new.id == old.id == stored.id:
        raise ConflictError(f"gallery {gallery.name!r} already serves {new.name!r}; there is nothing to do.")
    if new.id == stored.id:
        raise ConflictError(
            f"gallery {gallery.name!r} still holds the embeddings of {new.name!r}, {old.name!r} searches them through a "
            "query adapter; take that back with `hotrefresh rollout rollback` instead."
        )
    check_embeddable(connection, gallery, new)
    adapter = find_adapter(connection, request.adapter) if request.adapter else None
    strategy = _choose_strategy(request, adapter, stored, new)
    if new.id == old.id and not strategy.reembeds:
        raise ConflictError(
            f"gallery {gallery.name!r} already serves {new.name!r} through a query adapter; strategy {strategy.name!r} "
            "brings nothing new. Embed the items anew: `--strategy reembed` or `--strategy transform-then-reembed`."
        )
    check_codecs(stored, new)
    if adapter is None and new.dim != stored.dim and new.base_model_id is None:
        raise NotCertifiedError(
            f"{new.name!r} has {new.dim} dimensions, the stored embeddings of {stored.name!r} have {stored.dim}: they cannot "
            "be mixed without an adapter. Fit one with "
            f"`hotrefresh model adapt {stored.name} {new.name} --gallery {gallery.name}`."
        )
    certificate = require_certificate(connection, gallery, new, stored, adapter)
    check_contracts(connection, gallery, (old, stored), new, strategy)
    if towers := require_towers(connection, gallery, old, new, stored, adapter):
        # The plain pair's map was measured on none of their queries.
        request = replace(request, calibration="off")
        certified_uncalibrated(
            certificate,
            f"Scores stay raw where {towers[0].modality}s are asked through a tower: certify the pair with the --loss that you "
            "accept, or train the model compatibly.",
        )
    calibration = resolved_calibration(connection, gallery, certificate, strategy, request.calibration)
    guard = resolved_guard(connection, gallery, certificate, calibration, request, strategy)
    if running is not None:
        _certify_the_rest(connection, gallery, new, running)
    order = request.order or strategy.usual_order
    if strategy.reembeds:
        check_order(
            context,
            connection,
            order,
            adapter if strategy.lifts else None,
            gallery,
            request.demand_base,
            new,
        )
    gates = resolved_gates(context.settings.gate)
    config = {
        "prototypes": request.prototypes,
        "temperature": request.temperature,
        "demand_base": request.demand_base,
        "reorder": request.reorder,
        "seed": request.seed,
        "lease_s": request.lease_s or context.settings.lease_s,
        "rollback_window_s": ROLLBACK_WINDOW.total_seconds(),
        "lane": request.lane,
        "speed": 1.0,
        "failure_budget": FAILURE_BUDGET,
        "throttles": resolved(context.settings.throttle),
        "gates": gates,
        "flip_ks": sorted({1, *context.settings.flip_ks, *depths(gates, of_churn=False)}),
        "churn_k": max({context.settings.churn_k, *depths(gates, of_churn=True)}),
        "churn_p": context.settings.churn_p,
        "calibration": calibration,
        "guard": guard,
    }
    return Checked(
        gallery,
        running,
        old,
        stored,
        new,
        adapter,
        strategy,
        order,
        certificate,
        request.batch_size or context.settings.batch_size,
        config,
        request.calibration,
    )


def direction_of(adapter: AdapterRow, stored: ModelRow, new: ModelRow) -> Direction:
    """Which way an adapter leads between a gallery's vectors and a new model.

    Raises:
        ConflictError: it belongs to other models.
    """
    ends = adapter.source_model_id, adapter.target_model_id
    if ends == (stored.id, new.id):
        return Direction.FORWARD
    if ends == (new.id, stored.id):
        return Direction.BACKWARD
    raise ConflictError(
        f"adapter {adapter.name!r} does not lead from {stored.name!r} to {new.name!r}, nor back. "
        "`hotrefresh model list` shows which models adapters belong to."
    )


def _choose_strategy(
    request: StartRequest, adapter: AdapterRow | None, stored: ModelRow, new: ModelRow
) -> Strategy:
    try:
        return choose(
            request.strategy,
            direction_of(adapter, stored, new) if adapter else None,
            recodable=new.base_model_id is not None
            and new.base_model_id in (stored.id, stored.base_model_id),
        )
    except UnfitStrategyError as error:
        raise UsageError(str(error)) from None


def _check_supersede(
    connection: Connection, gallery: GalleryRow, running: RolloutRow, request: StartRequest
) -> None:
    if not request.supersede:
        raise already_active(gallery, running)
    if traffic_queries.canary_under_way(connection, running.id):
        raise ConflictError(
            f"rollout {running.id} has a canary and cannot be superseded; end it first with "
            f"`hotrefresh rollout promote {running.id}`, or roll that rollout back."
        )
    if running.kind == "initial" or running.state not in ("deployed", "backfilling", "paused"):
        raise ConflictError(
            f"rollout {running.id} is {running.state} and cannot be superseded; "
            + (
                "finalize it, then start."
                if running.state == "finalizable"
                else "wait until it is over, then start."
            )
        )
    if running.how.recodes:
        raise ConflictError(
            f"gallery {gallery.name!r} holds floats beside codes while rollout {running.id} runs; finalize it, or roll it back."
        )
    if request.adapter is not None:
        raise ConflictError(
            f"gallery {gallery.name!r} holds embeddings of several models while rollout {running.id} runs, and an adapter "
            "lifts those of one. Start without an adapter, or finalize that rollout first."
        )


def _certify_the_rest(
    connection: Connection, gallery: GalleryRow, new: ModelRow, running: RolloutRow
) -> None:
    """Every older model whose vectors are still in the mixture needs a certificate under the new query model too."""
    adapter_id = None
    for rollout in reversed(rollout_queries.effective_rollouts(connection, gallery.id)):
        if not rollout.how.holds_vectors:
            continue
        if rollout.id != running.id:
            old = model_queries.model_by_id(connection, rollout.to_model_id)
            adapter = None if adapter_id is None else model_queries.adapter_by_id(connection, adapter_id)
            certified_uncalibrated(require_certificate(connection, gallery, new, old, adapter))
            require_towers(connection, gallery, old, new, old, adapter)
            if rollout.state == "finalized":
                return
        if rollout.adapter_id is not None and adapter_id is not None:
            raise ConflictError(
                f"the oldest embeddings of gallery {gallery.name!r} went through two adapters already; finalize rollout "
                f"{running.id} first."
            )
        adapter_id = rollout.adapter_id if adapter_id is None else adapter_id


def already_active(gallery: GalleryRow, latest: RolloutRow) -> ConflictError:
    return ConflictError(
        f"gallery {gallery.name!r} has rollout {latest.id} in state {latest.state}; one at a time. "
        f"Look with `hotrefresh rollout status {latest.id}`; finalize, cancel or roll it back first."
    )


def start(
    context: Context, request: StartRequest, progress: Callable[[int, int], None] | None = None
) -> RolloutRow:
    """Check, create the rollout, adapt the gallery where there is an adapter, and flip serving to the new model.

    When this returns, every replica answers with the new model as soon as it has read the log. Planning and
    re-embedding are the workers'. Interrupted at any moment, the ledger says how far it came and a worker goes on.
    """
    with transaction(context.engine) as connection:
        checked = check_start(context, connection, request)
        if checked.running is not None:
            running = locked(connection, checked.running.id)
            move(
                connection,
                running,
                Verb.SUPERSEDE,
                actor=context.actor,
                reason=f"{checked.new.name} takes its place",
            )
        folder = new_folder(context.settings.extents, checked.gallery.id)
        reach("before_insert")
        rollout_id = rollout_queries.insert_rollout(
            connection,
            gallery_id=checked.gallery.id,
            kind="upgrade",
            from_model_id=checked.old.id,
            to_model_id=checked.new.id,
            adapter_id=checked.adapter.id if checked.adapter else None,
            strategy=checked.strategy.name,
            certificate_id=checked.certificate.id,
            order_name=checked.order,
            config=checked.config,
            batch_size=checked.batch_size,
            n_items=checked.gallery.n_items if checked.strategy.reembeds else 0,
            lifted_items=checked.gallery.n_items if checked.strategy.lifts else 0,
            extent_uri=folder,
            actor=context.actor,
        )
        if rollout_id is None:
            latest = rollout_queries.latest_rollout(connection, checked.gallery.id)
            assert latest is not None
            raise already_active(checked.gallery, latest)
        if checked.strategy.reembeds and checked.running is None:
            flip_queries.insert_curve_points(
                connection, rollout_id, simulated_curve(checked.certificate, checked.asked_calibration)
            )
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="rollout.planned",
            target=str(rollout_id),
            after={
                "gallery": checked.gallery.name,
                "from": checked.old.name,
                "to": checked.new.name,
                "strategy": checked.strategy.name,
                "order": checked.order,
            },
        )
        divide(connection, rollout_id, request.canary, request.shadow, context.actor)
        request_wakeup(connection, "deploy", rollout_id)
    from orchestrator.service.advance import deploy

    reach("inserted")
    deploy(context, rollout_id, progress)
    relay(context)
    return reread(context, rollout_id)
