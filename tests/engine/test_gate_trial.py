"""Gates tried before they are set: the answers that they give when they are, and nothing that changes by it."""

from __future__ import annotations

import pytest

from cli.main import main
from orchestrator.errors import ConflictError, ExitCode, UsageError
from orchestrator.gates import resolved
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, rollouts, tuning
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.gate_trial import try_gates
from tests.engine import platform
from workers.drain import drain

GATES = [
    {"name": "flips", "measure": "negative_flip_rate", "limit": 0.02},
    {"name": "stage", "measure": "stage_flip_rate", "limit": 0.5, "effect": "rollback"},
    {"name": "recall", "measure": "recall_loss", "limit": 0.0, "effect": "alert"},
    {"name": "broken", "measure": "quarantine_rate", "limit": 0.1, "minimum_n": 1000},
    {
        "name": "tenant",
        "measure": "negative_flip_rate",
        "limit": 0.1,
        "slice": "tenant=acme",
        "error_limit": 0,
    },
    {"name": "deep", "measure": "negative_flip_rate", "limit": 0.1, "k": 7, "dry_run": True},
    {"name": "vetoes", "measure": "sql", "limit": 0, "query": "SELECT 3"},
    {"name": "silent", "measure": "http", "limit": 0, "url": "http://127.0.0.1:1/load"},
]
FIELDS = (
    "queryset", "measure", "slice", "k", "result", "value", "limit", "sample_n", "effect", "dry_run", "reason",
)  # fmt: skip
ALERT = {"minimum_n": 20, "effect": "alert"}
OF_LOGGED = [
    {"name": "churn", "measure": "churn", "limit": 0.05, **ALERT},
    {"name": "deep", "measure": "churn", "limit": 1.0, "k": 10, "query_set": "logged", **ALERT},
    {"name": "too_deep", "measure": "churn", "limit": 0.1, "k": 11, "query_set": "logged", **ALERT},
    {
        "name": "sliced",
        "measure": "churn",
        "limit": 0.1,
        "slice": "tenant=acme",
        "query_set": "logged",
        **ALERT,
    },
    {"name": "clicks", "measure": "click_loss_rate", "limit": 0.01, **ALERT},
    {"name": "clicks_of_logged", "measure": "click_loss_rate", "limit": 0.1, "query_set": "logged", **ALERT},
    {"name": "flips", "measure": "negative_flip_rate", "limit": 0.01, **ALERT},
    {
        "name": "flips_of_clicked",
        "measure": "negative_flip_rate",
        "limit": 0.1,
        "query_set": "clicked",
        **ALERT,
    },
]
FILE = """
[[gate]]
measure = "negative_flip_rate"
limit = {limit}
minimum_n = {minimum_n}
"""


@pytest.fixture
def poor(context, tmp_path):
    """Half-way to a bad model, and all that is committed is counted. No gate is set."""
    platform.embedded_gallery(context, tmp_path)
    return half_way_to_a_bad_model(context, tmp_path)


@pytest.fixture
def logged(context, tmp_path):
    """As `poor`, with query sets of which clicks, and of which nothing is known."""
    platform.embedded_gallery(context, tmp_path)
    platform.import_logged(context, tmp_path)
    return half_way_to_a_bad_model(context, tmp_path)


def half_way_to_a_bad_model(context, tmp_path):
    platform.register_network(context, tmp_path, "poor", seed=0, kept=4)
    platform.certify_by_hand(context, "poor")
    row = advance.advance(context, platform.start(context, "poor").id)
    evaluate_rollout(context, row.id, {})

    def half_way(seq):
        if rollouts.reread(context, row.id).committed_items >= 120:
            rollouts.pause(context, row.id)

    drain(context, row.id, owner="test", committed=half_way)
    evaluate_rollout(context, row.id, {})
    return rollouts.resume(context, row.id)


def tables(context):
    """Everything that a gate may write to."""
    with context.engine.connect() as connection:
        return {
            name: connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1").all()
            for name in ("gate_decision", "audit", "rollout", "outbox", "evaluation")
        }


def tried_and_set(context, rollout_id, gates):
    """What a trial answers, which leaves everything as it is, and gives what the gates say when they are then set.

    By gate and query set. Both look at where the rollout stands, not at what was before the gates were set.
    """
    before = tables(context)
    tried = try_gates(context, str(rollout_id), gates)
    assert tables(context) == before

    tuning.set_values(context, rollout_id, {"gates": resolved(gates)})
    evaluate_rollout(context, rollout_id, {})
    with context.engine.connect() as connection:
        judged = read_view(connection, "gate_decisions", rollout=rollout_id)
    assert len(tried) == len(judged)
    assert {each["times"] for each in judged} == {1}
    given = {(each["gate"], each["queryset"]): tuple(each[field] for field in FIELDS) for each in judged}
    found = {(each.gate, each.queryset): each for each in tried}
    assert {key: tuple(getattr(each, field) for field in FIELDS) for key, each in found.items()} == given
    return found


def test_a_trial_gives_the_answers_that_the_gates_give_when_they_are_set(context, poor):
    found = tried_and_set(context, poor.id, GATES)
    answers = {gate: (each.result, each.effect) for (gate, _), each in found.items()}
    assert answers["flips"] == ("fail", "pause")
    assert answers["recall"] == ("fail", "alert")
    assert answers["broken"] == ("inconclusive", "pause")
    assert answers["tenant"] == ("inconclusive", "pause")
    assert answers["deep"] == ("inconclusive", "none")
    assert answers["vetoes"] == ("fail", "pause")
    assert answers["silent"] == ("inconclusive", "none")  # three errors are borne


def test_a_trial_judges_clicks_and_churn_as_the_gates_do_when_they_are_set(context, logged):
    found = tried_and_set(context, logged.id, OF_LOGGED)
    answers = {key: each.result for key, each in found.items()}
    assert answers == {
        ("churn", "asked"): "fail", ("churn", "logged"): "fail", ("churn", "clicked"): "fail", ("deep", "logged"): "pass",
        ("too_deep", "logged"): "inconclusive", ("sliced", "logged"): "inconclusive", ("clicks", "clicked"): "fail",
        ("clicks_of_logged", "logged"): "inconclusive", ("flips", "asked"): "fail",
        ("flips_of_clicked", "clicked"): "inconclusive",
    }  # fmt: skip
    assert (found["clicks", "clicked"].sample_n, found["churn", "logged"].sample_n) == (90, 120)
    assert 0 < found["clicks", "clicked"].value < 1
    assert 0 < found["churn", "logged"].value < 1


def test_a_trial_says_how_much_the_value_surely_is(context, poor):
    flips, recall = (
        try_gates(context, str(poor.id), [{"measure": measure, "limit": 0.0}])[0]
        for measure in ("negative_flip_rate", "recall_loss")
    )
    assert 0 < flips.least < flips.value < 1
    assert recall.least == recall.value, "McNemar's test is sure of it"
    nothing = try_gates(context, str(poor.id), [{"measure": "negative_flip_rate", "limit": 0, "k": 7}])[0]
    assert (nothing.least, nothing.value) == (None, None)


def test_what_cannot_be_tried_is_refused_in_one_sentence(context, poor):
    with pytest.raises(UsageError, match="gate 1: measure is 'luck'"):
        try_gates(context, str(poor.id), [{"measure": "luck", "limit": 1}])
    with pytest.raises(ConflictError, match="first embedding"):
        try_gates(context, "1", GATES)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"limit": 1.0, "minimum_n": 100}, ExitCode.DONE),
        ({"limit": 0.0, "minimum_n": 100}, ExitCode.NOT_CERTIFIED),
        ({"limit": 1.0, "minimum_n": 121}, ExitCode.INCONCLUSIVE),
    ],
)
def test_the_command_shows_the_answers_and_ends_with_their_code(
    environment, poor, tmp_path, capsys, values, code
):
    (tmp_path / "my gates.toml").write_text(FILE.format(**values))
    capsys.readouterr()
    assert main(["ledger", "gates", str(poor.id), "--try", str(tmp_path / "my gates.toml")]) == code
    said = capsys.readouterr()
    assert "negative_flip_rate" in said.out
    assert f"rollout set {poor.id} 'gates=" in said.err
    (tmp_path / "none.toml").write_text("[other]\n")
    assert main(["ledger", "gates", str(poor.id), "--try", str(tmp_path / "none.toml")]) == ExitCode.USAGE
    assert main(["ledger", "gates", str(poor.id), "--try", str(tmp_path / "away.toml")]) == ExitCode.USAGE
