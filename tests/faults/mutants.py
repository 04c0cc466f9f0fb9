"""The safety mutants: each takes one guard out of the engine, and the named tests must then fail.

They are data. Where the engine's text changes, a mutant's `old` no longer occurs exactly once and the suite says so.
"""

from __future__ import annotations

from dataclasses import dataclass

GUARDS = "tests/faults/test_guards.py"


@dataclass(frozen=True)
class Mutant:
    """One change of one file, and the tests that have to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BATCHES, DRAIN, EXTENTS = (
    "orchestrator/ledger/queries/batches.py",
    "workers/pipeline.py",
    "orchestrator/store/local.py",
)

MUTANTS = (
    Mutant(
        "no fence at the commit",
        BATCHES,
        "WHERE b.first_rank = :first_rank AND b.fence = :fence AND b.state = 'leased' FOR NO KEY UPDATE OF b",
        "WHERE b.first_rank = :first_rank AND b.state = 'leased' FOR NO KEY UPDATE OF b",
        (f"{GUARDS}::test_a_commit_under_an_older_fence_is_refused",),
    ),
    Mutant(
        "no generation at the commit",
        BATCHES,
        "WHERE id = :rollout AND generation = :generation AND late_revision = :late_revision",
        "WHERE id = :rollout AND late_revision = :late_revision",
        (f"{GUARDS}::test_a_commit_of_an_older_generation_is_refused",),
    ),
    Mutant(
        "no state at the commit",
        BATCHES,
        "WHERE b.first_rank = :first_rank AND b.fence = :fence AND b.state = 'leased' FOR NO KEY UPDATE OF b",
        "WHERE b.first_rank = :first_rank AND b.fence = :fence FOR NO KEY UPDATE OF b",
        (f"{GUARDS}::test_a_commit_sent_twice_lands_once",),
    ),
    Mutant(
        "two active rollouts",
        "migrations/sql/0003_engine.sql",
        "CREATE UNIQUE INDEX rollout_one_active",
        "CREATE INDEX rollout_one_active",
        (f"{GUARDS}::test_a_second_active_rollout_is_refused_by_the_database",),
    ),
    Mutant(
        "no sync before the commit",
        EXTENTS,
        "                os.fdatasync(descriptor)\n",
        "                pass\n",
        (f"{GUARDS}::test_no_commit_before_its_bytes_are_synced",),
    ),
    Mutant(
        "no checksum at the read",
        "orchestrator/store/base.py",
        "if crc is not None and zlib.crc32(",
        "if crc is None and zlib.crc32(",
        (f"{GUARDS}::test_bytes_that_changed_after_their_commit_are_not_served",),
    ),
    Mutant(
        "a lease can be taken before it ends",
        BATCHES,
        "OR state = 'leased' AND lease_until < clock_timestamp())",
        "OR state = 'leased')",
        (f"{GUARDS}::test_a_lease_holds_until_it_ends_and_no_longer",),
    ),
    Mutant(
        "no look at our own clock",
        "workers/leases.py",
        "return held is not None and time.monotonic() < held[1]",
        "return held is not None",
        (f"{GUARDS}::test_a_lease_that_ran_out_by_our_own_clock_is_not_held",),
    ),
    Mutant(
        "tries are not counted when they begin",
        BATCHES,
        "fence = fence + 1, attempt = attempt + 1, lease_owner",
        "fence = fence + 1, lease_owner",
        (f"{GUARDS}::test_a_lease_holds_until_it_ends_and_no_longer",),
    ),
    Mutant(
        "an unseen commit is taken for refused",
        DRAIN,
        "return batch_queries.reread_commit(connection, work.claim)",
        "return None",
        ("tests/faults/test_actions.py::test_a_commit_whose_answer_was_lost_is_looked_up_not_redone",),
    ),
    Mutant(
        "pause and cancel do not bump the generation",
        "orchestrator/service/rollouts.py",
        "bump_generation=verb in _FENCING",
        "bump_generation=False",
        (f"{GUARDS}::test_a_commit_into_a_paused_rollout_is_refused_even_after_it_goes_on",),
    ),
    Mutant(
        "claims do not lock",
        BATCHES,
        "ORDER BY band, first_rank LIMIT 1 FOR UPDATE SKIP LOCKED",
        "ORDER BY band, first_rank LIMIT 1",
        (f"{GUARDS}::test_two_claims_at_once_take_two_batches_without_waiting",),
    ),
    Mutant(
        "the log's number is not drawn",
        BATCHES,
        """    UPDATE gallery_log SET last_seq = last_seq + 1 FROM mine WHERE gallery_log.gallery_id = mine.gallery_id
    RETURNING last_seq
""",
        """    SELECT last_seq + 1 AS last_seq FROM gallery_log JOIN mine USING (gallery_id)
""",
        (f"{GUARDS}::test_a_rollout_with_holes_ends_and_the_log_is_serial",),
    ),
    Mutant(
        "quarantined items are not counted",
        BATCHES,
        "quarantined_items = quarantined_items + coalesce(cardinality(outcome.holes), 0)",
        "quarantined_items = quarantined_items + 0",
        (f"{GUARDS}::test_a_rollout_with_holes_ends_and_the_log_is_serial",),
    ),
    Mutant(
        "leases are renewed without their fence",
        BATCHES,
        """            \"\"\"UPDATE batch SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
               WHERE rollout_id = :rollout AND first_rank = :first_rank AND fence = :fence AND state = 'leased'""",
        """            \"\"\"UPDATE batch SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
               WHERE rollout_id = :rollout AND first_rank = :first_rank AND :fence >= 0 AND state = 'leased'""",
        (f"{GUARDS}::test_a_lease_holds_until_it_ends_and_no_longer",),
    ),
    Mutant(
        "a rollback is not in the log",
        "orchestrator/service/rollouts.py",
        '    log_queries.append_log_event(connection, rollout.gallery_id, rollout.id, "reset")\n',
        "",
        (f"{GUARDS}::test_a_rollback_reaches_a_replica_that_follows",),
    ),
)
