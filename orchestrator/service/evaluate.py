"""Bringing a rollout's flips to the log's end, its gates with them, and what is refreshed next."""

from __future__ import annotations

from orchestrator.context import Context
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import locks
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.service.gates import Gatekeeper, Tell, tell_nobody
from orchestrator.service.reorder import reorder_if_due
from orchestrator.serving.evaluator import Evaluator, served_before


def evaluate_rollout(
    context: Context, rollout_id: int, kept: dict[int, Evaluator], tell: Tell = tell_nobody
) -> int:
    """Bring a rollout's flips to the log's end, unless another process is doing so; returns batches evaluated.

    Args:
        kept: evaluators of this process by rollout, so that the next call goes on where this one ended.
        tell: hears what gates answered.
    """
    done, gatekeeper = 0, Gatekeeper(context, rollout_id, tell)
    # Autocommit: the lock is the session's, and a transaction that idles while batches are evaluated would be ended.
    with context.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while True:
            rollout = rollout_queries.rollout_by_id(connection, rollout_id)
            if rollout is None or rollout.kind != "upgrade" or rollout.deployed_at is None:
                return done
            if not gallery_queries.query_sets_of_gallery(connection, rollout.gallery_id):
                return done
            if not locks.try_lock_evaluator(connection, rollout_id):
                return done  # whoever holds it looks at the log once more after letting go
            try:
                if rollout.state in ("cancelled", "rolled_back", "failed", "superseded"):
                    kept.pop(rollout_id, None)
                    return done
                if rollout_id not in kept:
                    before = served_before(connection, rollout)
                    if before is None or before.to_model_id != rollout.from_model_id:
                        return done  # the old system was reclaimed: nobody can say any more what it answered
                    kept[rollout_id] = Evaluator(context, rollout_id, gatekeeper.judge)
                done += kept[rollout_id].catch_up()
                gatekeeper.ask_outside()
                reorder_if_due(context, rollout_id, kept[rollout_id], tell)
            except BaseException:
                # It may have applied what it could not write: only a new one, replaying the log, knows the last stage.
                kept.pop(rollout_id, None)
                raise
            finally:
                locks.unlock_evaluator(connection, rollout_id)
            if kept[rollout_id].stale:
                kept.pop(
                    rollout_id
                )  # a new one knows the gallery as it is now, and replays what is evaluated
                continue
            # A batch committed meanwhile rang somebody who found the lock taken: it would never be evaluated.
            if log_queries.last_seq(connection, rollout.gallery_id) <= kept[rollout_id].seq:
                return done
