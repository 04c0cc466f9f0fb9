"""One rollout, half-way, and everybody who tells of it: commands, views, metrics, API and pages say the same numbers."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from cli.main import main
from orchestrator.core.metrics import top_k
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.service import advance, galleries, reorder, rollouts
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform
from tests.engine.api_server import client_of
from tests.engine.dashboard_server import browser_of, figures
from workers.drain import drain

# They alert only, so that they do not end what is looked at.
GATES = [
    {"measure": "negative_flip_rate", "limit": 0.01, "minimum_n": 100, "effect": "alert"},
    {"measure": "quarantine_rate", "limit": 0.37, "minimum_n": 10, "effect": "alert"},
    {"measure": "recall_loss", "limit": 0.013, "minimum_n": 100_000, "effect": "alert", "name": "many"},
    {"measure": "churn", "limit": 0.07, "minimum_n": 20, "effect": "alert"},
    {"measure": "click_loss_rate", "limit": 0.05, "minimum_n": 20, "effect": "alert"},
]
LABELLED, CLICKED, LOGGED = ("asked", "second"), "clicked", "logged"

# Who tells what; a number that one of them no longer tells is missed, and so is one that is told by nobody.
STATUS, LEDGER, VIEW, METRIC, API, PAGE, OVERVIEW = EVERYBODY = (
    "rollout status", "ledger", "view", "metric", "API", "page", "overview",
)  # fmt: skip
COUNTED = {STATUS, LEDGER, VIEW, METRIC}
TOLD_BY = {
    "committed": {STATUS, VIEW, METRIC, API, PAGE, OVERVIEW},
    "quarantined": {STATUS, VIEW, METRIC, API, PAGE, OVERVIEW},
    "pending": {STATUS, VIEW, METRIC, API, PAGE},
    "total": {STATUS, VIEW, API, PAGE, OVERVIEW},
    "coverage": {STATUS, VIEW, API, PAGE, OVERVIEW},
    "plan_revision": {STATUS, VIEW, API, PAGE},
    "workers_alive": {STATUS, VIEW, METRIC, PAGE, OVERVIEW},
    "coverage_ratio": {*COUNTED, PAGE, OVERVIEW},
    "n": {*COUNTED, PAGE},
    "nfr": {*COUNTED, PAGE, OVERVIEW},
    "pfr": {STATUS, LEDGER, VIEW, PAGE},
    "negative_flips": {STATUS, LEDGER, VIEW, PAGE, OVERVIEW},
    "positive_flips": {STATUS, LEDGER, VIEW, PAGE, OVERVIEW},
    "gate_result": {*COUNTED, PAGE, OVERVIEW},
    "gate_value": {*COUNTED, PAGE},
    "gate_limit": {*COUNTED, PAGE},
    "gate_sample_n": {STATUS, LEDGER, VIEW, PAGE},
    "overlap": {*COUNTED, PAGE},
    "rbo": {*COUNTED, PAGE},
    "loss_rate": {*COUNTED, PAGE},
    "clicks_n": {*COUNTED, PAGE},
}


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"gate": GATES, "flip_ks": [1, 3]})


@pytest.fixture
def rollout(context, tmp_path):
    """A rollout of a worse model, paused half-way, its plan revised, some items quarantined; two workers live.

    Beside `asked` there are `second`, labelled too, `clicked`, and `logged` without relevance. Some pictures of `second`
    are hard for both models, so that the worse one is right now and then where the better one is not.
    """
    platform.embedded_gallery(context, tmp_path)
    _import_blends(context, tmp_path / "second")
    platform.import_logged(context, tmp_path)
    platform.register_network(context, tmp_path, "poor", seed=0, kept=4)  # four of 32 dimensions
    platform.certify_by_hand(context, "poor")
    for number in range(0, platform.CLASSES, 5):
        (tmp_path / "pictures" / f"class-{number:02d}" / "1.png").write_bytes(b"no picture")
    row = advance.advance(context, platform.start(context, "poor").id)
    _work_a_while(context, row.id, 4)
    assert reorder.reorder(context, row.id, "flips").plan_revision == 1
    rollouts.resume(context, row.id)
    _work_a_while(context, row.id, 4)
    with context.engine.begin() as connection:
        for worker in ("host-1", "host-2"):
            worker_queries.register_worker(
                connection, worker_id=worker, host="host", pid=1, device="cpu", version="1", interval_s=600.0
            )
    return rollouts.reread(context, row.id)


def _work_a_while(context, rollout_id, batches):
    """Commit so many, not one more: a paused rollout refuses those that are under way. Then count flips, ask gates."""
    committed = []

    def pause(seq):
        committed.append(seq)
        if len(committed) == batches:
            rollouts.pause(context, rollout_id)

    drain(context, rollout_id, owner="test", committed=pause)
    evaluate_rollout(context, rollout_id, {})


def _import_blends(context, folder):
    """Half of them are a blend of two classes."""
    platform.draw_pictures(folder, 2, 9)
    for label in range(platform.CLASSES):
        one, two = (
            Image.open(folder / f"class-{each % platform.CLASSES:02d}" / "0.png")
            for each in (label, label + 1)
        )
        Image.blend(one, two, 0.5).save(folder / f"class-{label:02d}" / "1.png")
    galleries.import_query_set(context, "pics", "second", str(folder))


@pytest.fixture
def hotrefresh(environment, capsys):
    """The document that a command prints."""

    def run(*arguments):
        capsys.readouterr()
        assert main([*map(str, arguments), "-o", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


class Told:
    """Number and what it is about → who says it → the value as it is written with all its digits."""

    def __init__(self):
        self.facts = defaultdict(dict)

    def say(self, source, name, value, *about):
        self.facts[(name, *about)][source] = repr(float(value)) if not isinstance(value, str) else value

    def rows(self, source, rows, names, *about):
        """Of rows: columns (one that is told by another name as column=name) about what stands in `about`."""
        for row in rows:
            for column, name in (each.split("=") if "=" in each else (each, each) for each in names.split()):
                if row[column] is not None:
                    self.say(source, name, row[column], *(row[key] for key in about))


ROLLOUT = "committed quarantined pending total coverage plan_revision"
FLIPS = "n negative_flips positive_flips nfr pfr"
CLICKS_ON_PAGE = {"loss_rate": "click_loss_rate", "clicks_n": "click_n"}
GATE = "result=gate_result value=gate_value limit=gate_limit sample_n=gate_sample_n"


def by_commands(told, hotrefresh, row):
    status = hotrefresh("rollout", "status", row.id)
    told.rows(STATUS, [status], f"{ROLLOUT} workers_alive")
    told.rows(STATUS, status["coverage_by_model"], "ratio=coverage_ratio", "model")
    told.rows(STATUS, status["flips"], FLIPS, "queryset")
    told.rows(STATUS, status["gates"], GATE, "gate", "queryset")
    told.rows(STATUS, status["churn"], "overlap rbo", "queryset")
    told.rows(STATUS, status["clicks"], "loss_rate n=clicks_n", "queryset")
    told.rows(LEDGER, hotrefresh("ledger", "versions", "pics")["coverage"], "ratio=coverage_ratio", "model")
    # Oldest first: the newest of each query set is said last.
    history = hotrefresh("ledger", "flips", row.id, "--summary")["flip_summary"]
    told.rows(LEDGER, history, FLIPS, "queryset")
    told.rows(LEDGER, hotrefresh("ledger", "gates", row.id)["gates"], GATE, "gate", "queryset")
    told.rows(LEDGER, hotrefresh("ledger", "churn", row.id)["churn"], "overlap rbo", "queryset")
    clicks = hotrefresh("ledger", "clicks", row.id)["click_summary"]
    told.rows(LEDGER, clicks, "loss_rate n=clicks_n", "queryset")


def by_views(told, context, row):
    """As a dashboard's role, which may read the views only."""
    mine = f"WHERE rollout = {row.id}"
    newest = f"{mine} AND slice = 'all' AND seq = (SELECT max(seq) FROM reporting.{{0}} {mine})"
    with context.engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE hotrefresh_dashboard")

        def view(name, where):
            sql = f"SELECT * FROM reporting.{name} {where.format(name)}"
            return connection.exec_driver_sql(sql).mappings().all()

        told.rows(VIEW, view("rollout_status", f"WHERE id = {row.id}"), ROLLOUT)
        told.say(VIEW, "workers_alive", len(view("worker_health", "WHERE live")))
        told.rows(VIEW, view("coverage_by_model", "WHERE gallery = 'pics'"), "ratio=coverage_ratio", "model")
        told.rows(VIEW, view("flip_summary", f"{newest} AND k = 1"), FLIPS, "queryset")
        told.rows(VIEW, view("gate_decisions", f"{mine} AND newest"), GATE, "gate", "queryset")
        told.rows(VIEW, view("churn_summary", newest), "overlap rbo", "queryset")
        told.rows(VIEW, view("click_summary", f"{newest} AND k = 1"), "loss_rate n=clicks_n", "queryset")


METRICS = {
    "hotrefresh_coverage_ratio": ("coverage_ratio", "model"),
    "hotrefresh_workers": ("workers_alive",),
    "hotrefresh_negative_flip_ratio": ("nfr", "queryset"),
    "hotrefresh_negative_flip_ratio_count": ("n", "queryset"),
    "hotrefresh_gate_state": ("gate_result", "gate", "queryset"),
    "hotrefresh_gate_value": ("gate_value", "gate", "queryset"),
    "hotrefresh_gate_limit": ("gate_limit", "gate", "queryset"),
    "hotrefresh_overlap_ratio": ("overlap", "queryset"),
    "hotrefresh_rbo_ratio": ("rbo", "queryset"),
    "hotrefresh_click_loss_ratio": ("loss_rate", "queryset"),
    "hotrefresh_click_loss_ratio_count": ("clicks_n", "queryset"),
}
ANSWERS = {1.0: "pass", 0.0: "inconclusive", -1.0: "fail"}


def by_api(told, client, row):
    """Its document of the rollout, and its metrics, where a query set is named with its gallery."""
    told.rows(API, [client.get(f"/rollouts/{row.id}").json()], ROLLOUT)
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for name, labels, value, *_ in family.samples:
            if labels.get("rollout", str(row.id)) != str(row.id):
                continue
            if name == "hotrefresh_items" and labels["state"] != "leased":
                told.say(METRIC, labels["state"], value)
            elif name in METRICS:
                said, *about = METRICS[name]
                about = [labels[key].removeprefix("pics/") for key in about]
                told.say(METRIC, said, ANSWERS[value] if said == "gate_result" else value, *about)


def by_pages(told, client, row):
    page, overview = client.get(f"/rollouts/{row.id}"), client.get("/")
    for name in TOLD_BY:
        about = {"coverage_ratio": ("model",)}.get(name, ())
        about = ("gate", "queryset") if name.startswith("gate_") else about
        about = ("queryset",) if name in (*FLIPS.split(), "overlap", "rbo", *CLICKS_ON_PAGE) else about
        for source, shown in ((PAGE, page), (OVERVIEW, overview)):
            for value, labels in figures(shown, CLICKS_ON_PAGE.get(name, name)):
                if value != "":
                    given = value if name == "gate_result" else float(value)
                    told.say(source, name, given, *(labels[key] for key in about))
    # In short: gate on query set, and its answer.
    for gate, queryset, result in re.findall(
        r'<span class="together">(\w+) on (\w+): <span class="pill \w+">(\w+)</span>', overview.text
    ):
        told.say(OVERVIEW, "gate_result", result, gate, queryset)


def recall_before_and_now(context, row, queryset):
    """How many queries have a right first answer, found by searching the old and the mixed gallery in full."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        queries = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, gallery.id, queryset)
        )
        old, new = (model_queries.model_by_name(connection, name) for name in ("old", "poor"))
        sides = (
            (old, load_matrix(connection, gallery.id, before=row.id)),
            (new, load_matrix(connection, gallery.id)),
        )
    right = []
    for model, matrix in sides:
        asked = encode_uris(context.encoder(model), queries.uris)[0]
        right.append(np.count_nonzero(queries.relevance.hits(top_k(asked, matrix.vectors, 1)[1])))
    return right, len(queries.queries)


def test_every_number_is_the_same_whoever_is_asked(context, rollout, hotrefresh):
    told = Told()
    by_commands(told, hotrefresh, rollout)
    by_views(told, context, rollout)
    with client_of(context) as api, browser_of(context) as browser:
        by_api(told, api, rollout)
        by_pages(told, browser, rollout)

    differing = [f"{fact}: {said}" for fact, said in told.facts.items() if len(set(said.values())) != 1]
    assert not differing, "\n".join(["somebody says another number", *differing])
    assert {name for name, *_ in told.facts} == set(TOLD_BY)
    for (name, *about), said in told.facts.items():
        assert set(said) == TOLD_BY[name], (name, about)

    numbers = {fact: next(iter(said.values())) for fact, said in told.facts.items()}
    _check_that_much_is_told(numbers)
    for queryset in LABELLED:
        (before, now), n = recall_before_and_now(context, rollout, queryset)
        for source in TOLD_BY["pfr"]:
            nfr, pfr = (told.facts[name, queryset][source] for name in ("nfr", "pfr"))
            exact = [Fraction(float(each)).limit_denominator(n) for each in (nfr, pfr)]
            assert [repr(float(each)) for each in exact] == [nfr, pfr], "shares of n"
            assert exact[1] - exact[0] == Fraction(int(now - before), n), (source, queryset)


def _check_that_much_is_told(numbers):
    """The world is one where these numbers can differ: little is 0, and every answer of a gate is there."""
    about = {name: {(*rest,) for told, *rest in numbers if told == name} for name in TOLD_BY}
    assert about["coverage_ratio"] == {("old",), ("poor",)}
    assert about["nfr"] == {(name,) for name in LABELLED}
    assert about["loss_rate"] == {(CLICKED,)}
    assert about["overlap"] == {(name,) for name in (*LABELLED, CLICKED, LOGGED)}
    assert {numbers[fact] for fact in numbers if fact[0] == "gate_result"} == set(ANSWERS.values())
    assert float(numbers[("plan_revision",)]) == 1
    assert float(numbers[("workers_alive",)]) == 2
    for queryset in LABELLED:
        assert numbers[("gate_value", "negative_flip_rate", queryset)] == numbers[("nfr", queryset)]
    assert numbers[("gate_value", "click_loss_rate", CLICKED)] == numbers[("loss_rate", CLICKED)]
    zero = {fact for fact, value in numbers.items() if value == "0.0"}
    assert zero <= {("positive_flips", "asked"), ("pfr", "asked")}, (
        "the old model is right about all of `asked`"
    )
