"""Gates on a real rollout: a bad model is halted, and every place tells the same of it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.api.metrics import LedgerCollector
from orchestrator.api.replicas import Replicas
from orchestrator.errors import InconclusiveError, NotCertifiedError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, rollouts, training, tuning
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.wait import read_status
from orchestrator.serving.evaluator import Evaluator
from tests.engine import platform
from workers.drain import drain

FLIPS = {"measure": "negative_flip_rate", "limit": 0.02, "minimum_n": 100}
SWAPPED = [["class-03", "class-17"]]  # 5 % of the 40 classes


@pytest.fixture
def gates():
    """The `[[gate]]` tables of a test."""
    return [FLIPS]


@pytest.fixture
def settings(settings, gates):
    return settings.model_copy(update={"gate": gates})


@pytest.fixture
def world(context, tmp_path):
    """`bad` takes two classes for each other; its certificate is by hand, as if it had been measured on too little."""
    platform.embedded_gallery(context, tmp_path)
    training.import_factory(
        context,
        "bad",
        "tests.engine.swapped:Swapped",
        {"encoder": str(tmp_path / "old"), "pictures": str(tmp_path / "pictures"), "pairs": SWAPPED},
    )
    platform.certify_by_hand(context, "bad")
    return context


def decisions(context, row, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, "gate_decisions", rollout=row.id, **filters)


def evaluations(context, row):
    with context.engine.connect() as connection:
        return read_view(connection, "flip_summary", rollout=row.id, k=1, slice="all")


def deployed(context, to="bad", **more):
    return advance.advance(context, platform.start(context, to, **more).id)


def state(context, row):
    return rollouts.reread(context, row.id).state


def test_a_bad_model_is_halted_within_one_evaluation_and_every_place_tells_the_same(world):
    row, lines = deployed(world), []
    assert row.state == "backfilling"
    evaluate_rollout(world, row.id, {}, lambda event, **keywords: lines.append((event, keywords)))
    stages = evaluations(world, row)
    assert len(stages) == 1, "nothing but the deployment"
    value = stages[0]["negative_flips"] / stages[0]["n"]
    assert 0.02 < value <= 0.05

    halted = rollouts.reread(world, row.id)
    assert halted.state == "paused"
    assert (
        halted.reason
        == f"gate negative_flip_rate on asked: failed, negative_flip_rate {value:.4g} is above 0.02, with n = 120"
    )
    expected = ("negative_flip_rate", "asked", value, 0.02)
    (view,) = decisions(world, row)
    assert (view["gate"], view["queryset"], view["value"], view["limit"]) == expected
    assert (view["result"], view["effect"], view["sample_n"], view["seq"]) == (
        "fail",
        "pause",
        120,
        stages[0]["seq"],
    )
    (shown,) = read_status(world, row.id).gates
    assert (shown["gate"], shown["queryset"], shown["value"], shown["limit"]) == expected
    ((event, line),) = lines
    assert (event, line["gate"], line["queryset"], line["value"], line["limit"]) == ("gate.failed", *expected)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(world, Replicas(world)))
    text = generate_latest(registry).decode()
    for metric, number in (("state", -1.0), ("value", value), ("limit", 0.02)):
        labels = f'{{gate="negative_flip_rate",queryset="asked",rollout="{row.id}"}}'
        assert f"hotrefresh_gate_{metric}{labels} {number}" in text
    with world.engine.connect() as connection:
        said = read_view(connection, "audit", action="rollout.paused", target=str(row.id))
    assert [each["actor"] for each in said] == ["gate"]
    assert drain(world, row.id, owner="test").batches == 0, "no batch is worked on any more"


def test_a_model_that_harms_nobody_passes_and_can_be_finalized(world):
    row = platform.start(world)
    assert platform.work(world, row.id).state == "finalizable"
    (view,) = decisions(world, row)
    assert (view["result"], view["effect"], view["newest"]) == ("pass", "none", True)
    assert view["times"] == len(evaluations(world, row)) > 10, "one row as long as the answer is the same"
    assert finish.finalize(world, row.id).state == "finalized"


@pytest.mark.parametrize("gates", [[{**FLIPS, "effect": "rollback"}]])
def test_a_gate_may_take_the_rollout_back(world):
    row = deployed(world)
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "rolled_back"
    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        serving = rollout_queries.serving_now(connection, gallery.id)
        assert model_queries.model_by_id(connection, serving.model_id).name == "old"


@pytest.mark.parametrize(
    "gates", [[{**FLIPS, "dry_run": True}, {**FLIPS, "name": "alarm", "effect": "alert"}]]
)
def test_dry_runs_and_alerts_are_written_down_and_hold_nothing_up(world):
    row = platform.start(world, "bad")
    assert platform.work(world, row.id).state == "finalizable"
    first = sorted(decisions(world, row)[:2], key=lambda each: each["gate"])
    assert [(each["gate"], each["result"], each["effect"], each["dry_run"]) for each in first] == [
        ("alarm", "fail", "alert", False),
        ("negative_flip_rate", "fail", "none", True),
    ]
    assert finish.finalize(world, row.id).state == "finalized"


@pytest.mark.parametrize(
    ("gates", "reason"),
    [
        ([{**FLIPS, "minimum_n": 121}], "120 observations are fewer than 121"),
        ([{**FLIPS, "limit": 0.04}], "but with n = 120 that could be chance at 0.95"),
        ([{**FLIPS, "query_set": "nobody", "error_limit": 0}], "the gallery has no query set 'nobody'"),
        ([{**FLIPS, "slice": "tenant=acme", "error_limit": 0}], "no flips are counted at k = 1 in slice"),
    ],
)  # fmt: skip
def test_a_gate_that_cannot_tell_pauses_and_never_passes(world, reason):
    row = deployed(world)
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "paused"
    (view,) = decisions(world, row)
    assert view["result"] == "inconclusive"
    assert reason in view["reason"]


@pytest.mark.parametrize("gates", [[{**FLIPS, "limit": 0.0, "failure_limit": 3}]])
def test_what_is_borne_in_a_row_is_counted_by_the_ledger_not_by_a_process(world):
    row, states = deployed(world), []

    def evaluated(seq):
        evaluate_rollout(world, row.id, {})  # another process each time
        states.append(state(world, row))

    evaluate_rollout(world, row.id, {})
    drain(world, row.id, owner="test", committed=evaluated)
    assert states[:3] == ["backfilling", "backfilling", "paused"], "the deployment was the first failure"
    assert decisions(world, row)[0]["times"] >= 4


@pytest.mark.parametrize("gates", [[{**FLIPS, "effect": "rollback"}]])
def test_an_evaluator_that_dies_before_it_judges_judges_when_it_is_back(world):
    row = deployed(world)
    Evaluator(world, row.id).catch_up()  # records, and ends before a gate is asked
    assert evaluations(world, row)
    assert decisions(world, row) == []
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "rolled_back"


@pytest.mark.parametrize("gates", [[{**FLIPS, "minimum_n": 121, "inconclusive_limit": 1, "error_limit": 1}]])
def test_an_error_between_does_not_begin_the_count_of_chances_anew(world):
    row = deployed(world, "kin")
    earlier = {"rollout_id": row.id, "gate": "negative_flip_rate", "query_set": "asked", "measure": "", "slice": "all",
               "k": 1, "value": None, "limit": 0.02, "sample_n": 0, "dry_run": False, "effect": "none", "seq": 0,
               "reason": ""}  # fmt: skip
    with world.engine.begin() as connection:
        for error in (False, True):
            gate_queries.insert_decision(connection, **earlier, result="inconclusive", error=error)
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "paused", "the second answer that could be chance, and one is borne"


def test_what_was_judged_is_not_judged_again(world):
    row = deployed(world, "kin")
    for _ in range(3):
        evaluate_rollout(world, row.id, {})
    assert decisions(world, row)[0]["times"] == 1


@pytest.mark.parametrize(
    ("gates", "error"),
    [
        ([{**FLIPS, "limit": -0.5, "failure_limit": 1000}], NotCertifiedError),  # nobody can keep it
        ([{**FLIPS, "minimum_n": 1000, "inconclusive_limit": 1000}], InconclusiveError),
    ],
)
def test_only_open_gates_let_a_rollout_be_finalized(world, error):
    row = platform.start(world)
    assert platform.work(world, row.id).state == "finalizable"
    with pytest.raises(error, match="gates=none"):
        finish.finalize(world, row.id)
    tuning.set_values(world, row.id, dict([tuning.parse("gates=none")]))
    assert finish.finalize(world, row.id).state == "finalized"


VETOES = "SELECT count(*) FROM hotrefresh.audit WHERE action = 'veto'"


def veto(context):
    with context.engine.begin() as connection:
        rollout_queries.write_audit(connection, actor="somebody", action="veto", target="all")


@pytest.mark.parametrize("gates", [[{"measure": "sql", "name": "vetoes", "limit": 0, "query": VETOES}]])
def test_somebody_elses_number_pauses_a_rollout_and_can_veto_its_end(world):
    row = platform.start(world)
    assert platform.work(world, row.id).state == "finalizable"
    assert decisions(world, row)[0]["result"] == "pass"
    veto(world)
    with pytest.raises(NotCertifiedError, match="gate vetoes: sql 1 is above 0"):
        finish.finalize(world, row.id)
    assert decisions(world, row, newest=True)[0]["value"] == 1
    tuning.set_values(world, row.id, dict([tuning.parse("gates=none")]))
    assert finish.finalize(world, row.id).state == "finalized"


@pytest.mark.parametrize("gates", [[{"measure": "sql", "limit": 0, "query": VETOES}]])
def test_somebody_elses_number_is_asked_for_while_the_refresh_goes_on(world):
    row = deployed(world, "kin")
    veto(world)
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "paused"


@pytest.mark.parametrize(
    "gates",
    [
        [{"measure": "sql", "limit": 0, "query": "SELECT 'x'", "error_limit": 0}],
        [
            {
                "measure": "sql",
                "limit": 0,
                "query": "SELECT 1",
                "database_url_env": "NO_SUCH",
                "error_limit": 0,
            }
        ],
        [{"measure": "http", "limit": 0, "url": "http://127.0.0.1:1/load", "error_limit": 0}],
    ],
)
def test_an_outside_number_that_does_not_come_is_inconclusive_and_pauses(world):
    row = deployed(world, "kin")
    evaluate_rollout(world, row.id, {})
    assert state(world, row) == "paused"
    (view,) = decisions(world, row)
    assert (view["result"], view["value"]) == ("inconclusive", None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"measure": "luck", "limit": 1}, "gate 1: measure is 'luck'; write one of negative_flip_rate"),
        ({"measure": "recall_loss"}, r"gate 1 \(recall_loss\): limit is missing"),
        ({**FLIPS, "effect": "none"}, "effect is 'none'; write one of pause, rollback, alert"),
        ({**FLIPS, "confidence": 1}, "confidence is 1; write a number above 0.5"),
        ({**FLIPS, "limits": 3}, "'limits' is no key"),
        ({**FLIPS, "dry_run": "yes"}, "dry_run is 'yes'; write true or false"),
        ({**FLIPS, "name": "Flips!"}, "write small letters"),
        ({"measure": "quarantine_rate", "limit": 0.1, "slice": "a=b"}, "'slice' is no key"),
        ({"measure": "sql", "limit": 1, "query": "DELETE FROM audit"}, "write one statement that reads"),
        ({"measure": "http", "limit": 1, "url": "http://me:word@host/"}, "holds a user or password"),
    ],
)
def test_a_mistake_in_a_table_is_one_sentence_at_the_start(world, table, message):
    world.settings = world.settings.model_copy(update={"gate": [table]})
    with pytest.raises(UsageError, match=message):
        platform.start(world)


def test_two_gates_of_one_name_are_refused(world):
    world.settings = world.settings.model_copy(update={"gate": [FLIPS, FLIPS]})
    with pytest.raises(UsageError, match="two gates are named 'negative_flip_rate'"):
        platform.start(world)
