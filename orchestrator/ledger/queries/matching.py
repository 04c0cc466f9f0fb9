"""Statements of copy detection along a refresh."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.core.thresholds import Thresholds
from orchestrator.ledger.queries.run import execute


def insert_thresholds(
    connection: Connection, rollout_id: int, query_set_id: int, seq: int, items: int, found: Thresholds
) -> None:
    """Store what was measured after one log entry; what another evaluator already stored stays."""
    execute(
        connection,
        "insert_thresholds",
        """INSERT INTO match_threshold (rollout_id, query_set_id, seq, items, n, true_pairs, micro_ap, recall_at_p90, threshold,
                                       old_micro_ap, old_recall_at_p90, old_threshold, accepted, accepted_right, lost, gained)
           VALUES (:rollout, :query_set, :seq, :items, :n, :true_pairs, :micro_ap, :recall, :threshold,
                   :old_micro_ap, :old_recall, :old_threshold, :accepted, :accepted_right, :lost, :gained)
           ON CONFLICT DO NOTHING""",
        rollout=rollout_id,
        query_set=query_set_id,
        seq=seq,
        items=items,
        n=found.queries,
        true_pairs=found.true_pairs,
        micro_ap=found.now.micro_ap,
        recall=found.now.recall_at_precision,
        threshold=found.now.threshold,
        old_micro_ap=found.old.micro_ap,
        old_recall=found.old.recall_at_precision,
        old_threshold=found.old.threshold,
        accepted=found.accepted,
        accepted_right=found.right,
        lost=found.lost,
        gained=found.gained,
    )
