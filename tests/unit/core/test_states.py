"""The transition table, walked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.states import (
    ACTIVE,
    TERMINAL,
    TRANSITIONS,
    IllegalTransition,
    RolloutState,
    Verb,
    legal_verbs,
    next_state,
    states_allowing,
)

S, V = RolloutState, Verb


def reachable_from(start: RolloutState) -> set[RolloutState]:
    found, queue = {start}, [start]
    while queue:
        state = queue.pop()
        for edge in TRANSITIONS:
            if edge.from_state is state and edge.to_state not in found:
                found.add(edge.to_state)
                queue.append(edge.to_state)
    return found


def test_the_upgrade_of_a_good_day_ends_finalized():
    state = S.PLANNED
    for verb in ("deploy", "begin_backfill", "pause", "resume", "complete", "finalize"):
        state = next_state(state, verb)
    assert state is S.FINALIZED


def test_every_state_is_reachable_from_planned():
    assert reachable_from(S.PLANNED) == set(S)


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_every_active_state_can_reach_a_terminal_one_without_failing(state):
    without_failure = {edge.to_state for edge in TRANSITIONS if edge.from_state is state} - {S.FAILED}
    assert without_failure, "failing is the only way out"
    assert reachable_from(state) & (TERMINAL - {S.FAILED})


def test_terminal_states_are_final_except_for_a_rollback_after_finalizing():
    left = {(edge.from_state, edge.verb) for edge in TRANSITIONS if edge.from_state in TERMINAL}
    assert left == {(S.FINALIZED, V.ROLLBACK), (S.SUPERSEDED, V.REINSTATE)}


def test_a_rollout_can_fail_from_every_active_state_and_from_no_other():
    assert set(states_allowing("fail")) == ACTIVE


def test_rollback_is_legal_exactly_while_the_new_model_serves():
    assert set(states_allowing("rollback")) == {
        S.DEPLOYED,
        S.BACKFILLING,
        S.PAUSED,
        S.FINALIZABLE,
        S.FINALIZED,
    }


def test_pause_and_cancel_are_asked_and_cancel_is_then_acknowledged():
    assert set(states_allowing("pause")) == {S.DEPLOYED, S.BACKFILLING}
    assert next_state(next_state("backfilling", "cancel"), "acknowledge_cancel") is S.CANCELLED
    assert next_state(next_state("paused", "rollback"), "acknowledge_rollback") is S.ROLLED_BACK


def test_no_state_and_verb_lead_to_two_states():
    keys = [(edge.from_state, edge.verb) for edge in TRANSITIONS]
    assert len(keys) == len(set(keys))


def test_every_edge_says_when_it_happens_in_its_own_sentence():
    sentences = [edge.when for edge in TRANSITIONS]
    assert len(sentences) == len(set(sentences))
    assert all(sentence.endswith(".") and len(sentence.split()) > 4 for sentence in sentences)


def test_every_verb_is_used():
    assert {edge.verb for edge in TRANSITIONS} == set(V)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(list(V)), max_size=30))
def test_any_walk_stays_in_the_table_and_an_illegal_verb_changes_nothing(verbs):
    state = S.PLANNED
    for verb in verbs:
        targets = [e.to_state for e in TRANSITIONS if e.from_state is state and e.verb is verb]
        if targets:
            assert verb in legal_verbs(state)
            state = next_state(state, verb)
            assert [state] == targets
        else:
            with pytest.raises(IllegalTransition) as caught:
                next_state(state, verb)
            assert (caught.value.state, caught.value.verb) == (state, verb)
            assert caught.value.legal == legal_verbs(state)


def test_an_illegal_verb_names_the_state_and_what_is_possible():
    with pytest.raises(IllegalTransition, match=r"cannot finalize a rollout that is paused.*resume"):
        next_state("paused", "finalize")
    with pytest.raises(IllegalTransition, match="final"):
        next_state("cancelled", "resume")


def test_an_unknown_state_or_verb_is_a_value_error():
    with pytest.raises(ValueError, match="not a valid"):
        next_state("sleeping", "pause")
    with pytest.raises(ValueError, match="not a valid"):
        next_state("paused", "sleep")
