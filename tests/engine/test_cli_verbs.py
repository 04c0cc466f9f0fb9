"""Every operator's verb in every state, by command: done, done already, or exit 4 naming the state. Nothing changes then."""

from __future__ import annotations

import json

import pytest

from orchestrator.core.states import RolloutState, Verb, legal_verbs
from orchestrator.errors import ExitCode
from orchestrator.service import advance, rollouts
from tests.engine import platform

S = RolloutState
# A verb in a state that it would lead to is done already.
VERBS = {
    "pause": (Verb.PAUSE, {S.PAUSED}),
    "resume": (Verb.RESUME, {S.BACKFILLING, S.DEPLOYED, S.PLANNED}),
    "cancel": (Verb.CANCEL, {S.CANCELLING, S.CANCELLED}),
    "rollback": (Verb.ROLLBACK, {S.ROLLING_BACK, S.ROLLED_BACK}),
    "finalize": (Verb.FINALIZE, {S.FINALIZED}),
}
RETRIABLE = {S.BACKFILLING, S.PAUSED, S.FINALIZABLE, S.FINALIZED}
SETTABLE = set(S) - {S.FINALIZED, S.SUPERSEDED, S.CANCELLED, S.ROLLED_BACK, S.FAILED}


@pytest.fixture
def rollout(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return advance.advance(context, platform.start(context).id)


def put_in(context, rollout_id, state):
    """Write a state by hand, whatever the way there; leases nobody holds, the plan is written."""
    with context.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE rollout SET state = '{state}', reason = NULL, paused_at = CASE WHEN '{state}' = 'paused' "
            f"THEN clock_timestamp() END, finished_at = CASE WHEN '{state}' IN ('finalized', 'superseded', 'cancelled', "
            f"'rolled_back', 'failed') THEN clock_timestamp() END WHERE id = {rollout_id}"
        )


def generation(context, rollout_id):
    row = rollouts.reread(context, rollout_id)
    return row.state, row.generation


@pytest.mark.parametrize("state", list(S))
def test_every_verb_in_this_state(context, rollout, hotrefresh, state):
    for name, (verb, already) in VERBS.items():
        put_in(context, rollout.id, state)
        before = generation(context, rollout.id)
        asking = ["--yes"] if name in ("cancel", "rollback") else []
        code, _, err = hotrefresh("rollout", name, rollout.id, *asking)
        if name == "finalize" and state is S.FINALIZABLE:
            assert code == ExitCode.CONFLICT  # in this made-up state items are open, and the blocker is named
            assert "open_items" in err
        elif state in already or verb in legal_verbs(state):
            assert code == 0, (name, err)
        else:
            assert code == ExitCode.CONFLICT, (name, err)
            assert state.value in err, name
            assert generation(context, rollout.id) == before, name


@pytest.mark.parametrize("state", list(S))
def test_retry_and_set_in_this_state(context, rollout, hotrefresh, state):
    put_in(context, rollout.id, state)
    code, _, err = hotrefresh("rollout", "retry", rollout.id, "--what", "missing")
    assert code == (0 if state in RETRIABLE else ExitCode.CONFLICT), err
    assert code == 0 or state.value in err
    put_in(context, rollout.id, state)
    code, _, err = hotrefresh("rollout", "set", rollout.id, "speed=0.5")
    assert code == (0 if state in SETTABLE else ExitCode.CONFLICT), err
    assert code == 0 or state.value in err


@pytest.mark.parametrize("state", list(S))
def test_status_list_get_and_history_work_in_this_state(context, rollout, hotrefresh, state):
    put_in(context, rollout.id, state)
    for verb in (("status",), ("get",), ("history",)):
        code, out, err = hotrefresh("rollout", *verb, rollout.id, "-o", "json")
        assert code == 0, err
        assert json.loads(out)["schema_version"] == 1
    code, out, _ = hotrefresh("rollout", "list", "-o", "json")
    assert code == 0
    assert json.loads(out)["rollouts"][0]["state"] == state.value


@pytest.mark.parametrize(
    ("alias", "state"), [("promote", "finalized"), ("abort", "cancelled"), ("undo", "rolled_back")]
)
def test_the_names_that_people_try_work(context, rollout, hotrefresh, alias, state):
    asking = [] if alias == "promote" else ["--yes"]
    if alias == "promote":
        platform.work(context, rollout.id)
    code, _, err = hotrefresh("rollout", alias, rollout.id, *asking)
    assert code == 0, err
    assert rollouts.reread(context, rollout.id).state == state


def test_items_come_change_and_go_by_command(context, rollout, hotrefresh, tmp_path):
    from tests.engine.test_living import pictures

    source = pictures(tmp_path / "new", ["new/1.png", "new/2.png"], 1)
    code, out, err = hotrefresh("gallery", "add", "pics", source, "-o", "json")
    assert (code, json.loads(out)["items"], json.loads(out)["rollout_id"]) == (0, 2, rollout.id), err
    changed = pictures(tmp_path / "new", ["new/1.png"], 2)
    code, out, err = hotrefresh("gallery", "update", "pics", changed)
    assert code == 0
    assert "2 changed" in err
    code, _, err = hotrefresh("gallery", "delete", "pics", "new/2.png", "--yes")
    assert (code, "1 deleted" in err) == (0, True)
    code, _, err = hotrefresh("gallery", "delete", "pics", "new/2.png", "--yes")
    assert code == ExitCode.NOT_FOUND
    assert platform.work(context, rollout.id).state == "finalizable"


def test_set_shows_what_was_set_and_get_reads_it(rollout, hotrefresh):
    code, out, _ = hotrefresh("rollout", "set", rollout.id, "speed=0.25", "window=8", "-o", "json")
    assert code == 0
    assert json.loads(out) == {"schema_version": 1, "speed": 0.25, "window": 8}
    assert json.loads(hotrefresh("rollout", "get", rollout.id, "speed", "-o", "json")[1])["speed"] == 0.25
    code, _, err = hotrefresh("rollout", "set", rollout.id, "speed=0.5", "window=no")
    assert code == ExitCode.USAGE
    assert "window" in err
    assert json.loads(hotrefresh("rollout", "get", rollout.id, "speed", "-o", "json")[1])["speed"] == 0.25


def test_a_finalize_that_is_postponed_says_accepted(rollout, hotrefresh):
    code, _, err = hotrefresh("rollout", "finalize", rollout.id, "--when-ready")
    assert code == 0
    assert "accepted" in err


def test_reclaim_shows_what_would_go_and_asks(context, rollout, hotrefresh):
    platform.work(context, rollout.id)
    assert hotrefresh("rollout", "finalize", rollout.id)[0] == 0
    code, _, err = hotrefresh("rollout", "reclaim", "pics", "--yes")
    assert (code, "nothing can be reclaimed" in err) == (0, True)
    assert hotrefresh("rollout", "set", rollout.id, "rollback_window_s=0")[0] == 0
    code, _, err = hotrefresh("rollout", "reclaim", "pics", "--dry-run")
    assert (code, "would reclaim" in err) == (0, True)
    code, _, err = hotrefresh("rollout", "reclaim", "pics", "--yes")
    assert (code, "reclaimed" in err) == (0, True)
    code, _, err = hotrefresh("rollout", "rollback", rollout.id, "--yes")
    assert code == ExitCode.CONFLICT
    assert "window" in err


def test_doctor_deep_reads_every_byte_and_finds_a_damaged_one(context, rollout, hotrefresh):
    from pathlib import Path

    row = platform.work(context, rollout.id)
    _, out, _ = hotrefresh("doctor", "--deep")
    lines = {line.split()[1]: line.split()[0] for line in out.splitlines() if " pics " in line}
    assert lines == dict.fromkeys(("I1", "I2", "I3", "I5", "I7", "I8", "I9", "I11", "I14"), "ok")
    with (Path(row.extent_uri) / "vectors.f32").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x01\x02\x03")
    code, out, _ = hotrefresh("doctor", "--deep")
    assert code == ExitCode.ERROR
    assert [line for line in out.splitlines() if line.startswith("finding") and "I8 pics" in line]
