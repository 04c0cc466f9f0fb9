"""How long commits wait while a plan is revised, beside writing the plan for the first time."""

from __future__ import annotations

import numpy as np

from bench.commit_batch import new_rollout
from bench.result import Row, in_turns, median, quartiles
from bench.scratch import register_network, scratch_context
from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts
from orchestrator.service.revisions import write_revision
from orchestrator.settings import Settings
from orchestrator.store import ROWS, SCORES, new_folder, write_array

CREDITED = 0.02
"""The part of the items that a revision moves to the front; all others move back to make room."""


def run(
    settings: Settings | None = None, *, repeats: int = 5, quick: bool = False, seed: int = 0
) -> list[Row]:
    """Medians of `repeats` revisions of a plan of a million items of which nothing is committed: the most there is to do."""
    n = 20_000 if quick else 1_000_000
    rng = np.random.default_rng(seed)
    with scratch_context(settings) as context:
        model = register_network(context, "bench", "convnet", {}, 0)
        rollout_id = new_rollout(context, model.id, n)
        row_of = rng.permutation(n).astype(np.uint32)
        folder = _give_folder(context, rollout_id, model.id)
        write_array(folder, SCORES, rng.random(n, dtype=np.float32))

        def first() -> None:
            write_array(folder, ROWS, row_of)
            with transaction(context.engine) as connection:
                connection.exec_driver_sql("DELETE FROM plan_chunk WHERE rollout_id = %s", (rollout_id,))
                rollouts.copy_plan(connection, rollout_id, plan.to_chunks(plan.invert(row_of)))

        def revise() -> None:
            priority = np.zeros(n, np.float32)
            priority[rng.choice(n, int(CREDITED * n), replace=False)] = 1
            assert write_revision(context, rollout_id, "flips", priority) is not None

        first()
        taken = in_turns({"revise": revise}, repeats)["revise"]
        again = in_turns({"first": first}, repeats)["first"]
    ours, theirs = median(taken), median(again)
    return [
        Row(
            0,
            f"revise a plan of {n:,} items, {CREDITED:.0%} of them move to the front: one transaction, median of {repeats}, "
            f"{quartiles(taken)} s (seed {seed})",
            ours,
            "s",
            f"write the plan and its chunks for the first time, {theirs:.2f} s",
            ours / theirs,
        )
    ]


def _give_folder(context: Context, rollout_id: int, model_id: int) -> str:
    """A place for the files of a rollout that is made an upgrade: uncertainties are written, too."""
    folder = new_folder(context.settings.extents, rollout_id)
    with transaction(context.engine) as connection:
        connection.exec_driver_sql(
            "UPDATE rollout SET extent_uri = %s, kind = 'upgrade', from_model_id = %s, deployed_at = now() WHERE id = %s",
            (folder, model_id, rollout_id),
        )
    return folder
