"""Waiting for a rollout, with time that is told."""

from __future__ import annotations

import pytest

from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError, HotrefreshError, WaitTimeoutError
from orchestrator.service import wait

DONE = {RolloutState.FINALIZABLE, RolloutState.FINALIZED}


@pytest.fixture
def story(monkeypatch):
    """Snapshots in order; every sleep is a second, and the last one stays."""

    class Story:
        now = 0.0

        def __init__(self):
            self.states = []

        def read(self, context, rollout_id):
            state, *reason = self.states[0] if len(self.states) == 1 else self.states.pop(0)
            row = {"id": rollout_id, "state": state, "reason": reason[0] if reason else None}
            return wait.RolloutStatus(row, (), 1, (), (), ())

        def wait(self, *states, timeout_s=None):
            self.states = [state if isinstance(state, tuple) else (state,) for state in states]
            self.seen = []
            return wait.wait_for(
                None, 5, DONE, timeout_s, lambda s: self.seen.append(s.state.value), clock=lambda: self.now, sleep=self.sleep
            )  # fmt: skip

        def sleep(self, seconds):
            self.now += 1.0

    told = Story()
    monkeypatch.setattr(wait, "read_status", told.read)
    return told


def test_it_ends_when_the_rollout_got_there_and_every_snapshot_was_shown(story):
    assert story.wait("deployed", "backfilling", "finalizable").state is RolloutState.FINALIZABLE
    assert story.seen == ["deployed", "backfilling", "finalizable"]


def test_a_pause_ends_it_with_the_reason(story):
    with pytest.raises(
        ConflictError, match=r"rollout 5 is paused: store_full: no space\. .*rollout resume 5"
    ):
        story.wait("backfilling", ("paused", "store_full: no space."))


def test_a_failure_ends_it_with_the_reason(story):
    with pytest.raises(HotrefreshError, match="rollout 5 failed: the artifact is gone"):
        story.wait("backfilling", ("failed", "the artifact is gone"))


@pytest.mark.parametrize("state", ["cancelled", "rolled_back"])
def test_a_state_that_is_never_left_ends_it(story, state):
    assert story.wait("backfilling", state).state.value == state


def test_a_time_out_says_that_the_rollout_goes_on(story):
    with pytest.raises(WaitTimeoutError, match=r"still backfilling after 3 s; it goes on.*status -w 5"):
        story.wait("backfilling", timeout_s=3)
    assert story.now == 3.0
