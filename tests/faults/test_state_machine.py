"""A rollout as a state machine: operators, workers, deaths and doubled messages in any order, judged after each step."""

from __future__ import annotations

import secrets
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from orchestrator.context import Context
from orchestrator.core.states import ACTIVE, RolloutState, Verb, legal_verbs
from orchestrator.errors import ConflictError
from orchestrator.ledger.rows import Claim
from orchestrator.service import finish, rollouts
from orchestrator.service.revisions import write_revision
from tests.faults import ledger, oracle, report, world
from tests.faults.volume import scaled

LONG = 3600.0


class RolloutMachine(RuleBasedStateMachine):
    """Rules are what may happen; the truth is glanced at after each and checked in full at the end.

    A rule to come (late items, deletes, retry) is one more method.
    """

    context: Context  # set by the test, shared by its examples: a rollout that is over is part of the next one's past
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.before = oracle.fingerprint(self.context, world.GALLERY)
        self.follower = oracle.open_replica(self.context, world.GALLERY)
        self.rollout_id = world.begin(self.context, lease_s=LONG).id
        self.claims: list[Claim] = []  # of workers that are dead, or stand still
        self.committed: dict[int, ledger.Lease] = {}

    # -- workers ------------------------------------------------------------------------------------------------------

    @rule(batches=st.integers(1, 4))
    def a_worker_does_some_batches(self, batches: int) -> None:
        from workers.drain import drain

        stop, seen = threading.Event(), []

        def committed(seq: int) -> None:
            seen.append(seq)
            if len(seen) >= batches:
                stop.set()

        result = drain(
            self.context, self.rollout_id, owner=secrets.token_hex(4), stop=stop, committed=committed
        )
        assert result.failure is None
        if self.state != RolloutState.BACKFILLING:
            assert result.batches == 0
        self.look()

    @rule(batches=st.integers(1, 3))
    def a_worker_claims_and_dies(self, batches: int) -> None:
        for _ in range(batches):
            claimed = ledger.claim(self.context, self.rollout_id, secrets.token_hex(4), LONG)
            if claimed is None:
                break
            self.claims.append(claimed)
        assert self.state == RolloutState.BACKFILLING or claimed is None
        self.look()

    @rule()
    def leases_end(self) -> None:
        ledger.expire_leases(self.context, self.rollout_id)
        self.look()

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 100))
    def somebody_else_takes_it_and_the_first_commits(self, which: int) -> None:
        claimed = self.claims[which % len(self.claims)]
        ledger.expire_leases(self.context, self.rollout_id)
        other = ledger.claim(self.context, self.rollout_id, "other", LONG)
        taken = {lease.key: lease for lease in ledger.leases(self.context, self.rollout_id)}
        key = ledger.key_of(claimed)
        if other is not None and ledger.key_of(other) == key:
            assert ledger.commit(self.context, claimed) is None, "a stale commit landed"
        if taken[key].fence != claimed.fence or self.state != RolloutState.BACKFILLING:
            assert ledger.commit(self.context, claimed) is None, "a stale commit landed"
        if other is not None:
            self.claims.append(other)
        self.look()

    @precondition(lambda self: self.committed)
    @rule(which=st.integers(0, 100))
    def a_commit_arrives_twice(self, which: int) -> None:
        lease = list(self.committed.values())[which % len(self.committed)]
        again = ledger.claim_of(self.context, self.rollout_id, lease)
        assert ledger.commit(self.context, again, lease.crc or 0) is None, "a doubled commit landed"
        self.look()

    # -- operators ----------------------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, act: Any, already: RolloutState) -> None:
        before = self.state
        legal = verb in legal_verbs(before) or before == already
        try:
            act(self.context, self.rollout_id)
        except ConflictError:
            assert not legal, f"{verb} was refused in {before}"
        else:
            assert legal or verb == Verb.RESUME, f"{verb} was taken in {before}"
        self.look()

    @rule()
    def pause(self) -> None:
        self._ask(Verb.PAUSE, rollouts.pause, RolloutState.PAUSED)

    @rule()
    def resume(self) -> None:
        self._ask(Verb.RESUME, rollouts.resume, RolloutState.BACKFILLING)

    @rule(seed=st.integers(0, 1000))
    def the_plan_is_revised(self, seed: int) -> None:
        items = rollouts.reread(self.context, self.rollout_id).plan_items
        priority = np.random.default_rng(seed).random(items, dtype=np.float32)
        try:
            write_revision(self.context, self.rollout_id, "flips", priority)
        except ConflictError:
            assert self.state not in (RolloutState.BACKFILLING, RolloutState.PAUSED)
        else:
            assert self.state in (RolloutState.BACKFILLING, RolloutState.PAUSED)
        self.look()

    @rule()
    def complete(self) -> None:
        whole = all(lease.state == "committed" for lease in ledger.leases(self.context, self.rollout_id))
        was = self.state
        finish.complete(self.context, self.rollout_id)
        if was == RolloutState.BACKFILLING:
            assert (self.state == RolloutState.FINALIZABLE) == whole
        self.look()

    @rule()
    def finalize(self) -> None:
        self._ask(Verb.FINALIZE, finish.finalize, RolloutState.FINALIZED)

    def _leave(self, verb: Verb, act: Any, asked: RolloutState, over: RolloutState) -> None:
        """Ask; while somebody holds a batch it is only asked, and ends when the leases do."""
        held = any(lease.state == "leased" for lease in ledger.leases(self.context, self.rollout_id))
        before = self.state
        self._ask(verb, act, asked if before == asked else over)
        if self.state == asked:
            assert held
            assert ledger.settle(self.context, self.rollout_id) == over

    @rule(chance=st.integers(0, 3))
    def cancel(self, chance: int) -> None:
        if chance == 0:  # rarely: it is the end
            self._leave(Verb.CANCEL, rollouts.cancel, RolloutState.CANCELLING, RolloutState.CANCELLED)

    @rule(chance=st.integers(0, 3))
    def roll_back(self, chance: int) -> None:
        if chance == 0:
            self._leave(Verb.ROLLBACK, rollouts.rollback, RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)

    @precondition(lambda self: self.state in ACTIVE)
    @rule()
    def a_second_start_is_refused(self) -> None:
        with pytest.raises(ConflictError):
            world.begin(self.context)

    # -- serving and flips --------------------------------------------------------------------------------------------

    @rule()
    def a_replica_catches_up(self) -> None:
        self.follower.catch_up()
        differs = oracle.replica_differs(self.context, self.follower)
        assert not differs, differs

    @rule()
    def flips_are_counted(self) -> None:
        from orchestrator.service.evaluate import evaluate_rollout

        evaluate_rollout(self.context, self.rollout_id, {})
        self.look()

    # -- what must hold -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RolloutState:
        return RolloutState(ledger.state(self.context, self.rollout_id))

    def look(self) -> None:
        """After each step: the cheap part of the oracle, and no committed batch has changed."""
        RolloutMachine.steps += 1
        truth = oracle.glance(self.context, self.rollout_id)
        assert truth.sound, truth
        now = {lease.key: lease for lease in ledger.leases(self.context, self.rollout_id)}
        for key, lease in self.committed.items():
            assert now[key] == lease, f"a committed batch changed: {lease} → {now[key]}"
        self.committed = {key: lease for key, lease in now.items() if lease.state == "committed"}

    def teardown(self) -> None:
        """At the end: all of the oracle, and the way back leads to the very bytes of before."""
        whole = self.state in (RolloutState.FINALIZABLE, RolloutState.FINALIZED)
        truth = oracle.check(self.context, self.rollout_id, finished=whole)
        truth.faults += oracle.check_serving(self.context, self.rollout_id, self.follower).faults
        assert truth.sound, truth
        if self.state not in (RolloutState.CANCELLED, RolloutState.ROLLED_BACK):
            rollouts.rollback(self.context, self.rollout_id, force=True)
        assert oracle.fingerprint(self.context, world.GALLERY) == self.before


def explore(context: Context, examples: int, steps: int) -> None:
    """Examples drawn the same way at every run."""
    RolloutMachine.context = context
    RolloutMachine.steps = 0
    run_state_machine_as_test(
        RolloutMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),  # shrinking on a real database takes minutes
        ),
    )


def test_any_order_of_events_keeps_the_truth(platform: Context) -> None:
    explore(platform, 15, 15)
    assert RolloutMachine.steps > 50


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_many_orders_of_events_keep_the_truth(platform: Context) -> None:
    examples = scaled(120, least=10)
    explore(platform, examples, 40)
    report.record(
        report.Figures(
            "any order of events (state machine)",
            f"{examples} examples, derandomised; 0 violations",
            RolloutMachine.steps,
            met=True,
            detail={"examples": examples},
        )
    )
