"""Churn and clicks in the ledger: against searching every stage in full, and never under the name of flips."""

from __future__ import annotations

import json

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.api.metrics import LedgerCollector
from orchestrator.api.replicas import Replicas
from orchestrator.core.flips import FlipCounts
from orchestrator.core.metrics import top_k
from orchestrator.errors import UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import VIEWS, read_view
from orchestrator.service import certify, finish
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.wait import read_status
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.evaluator import Evaluator
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform

DEPTH, P = 5, 0.8
DRY = {"dry_run": True, "minimum_n": 20}
GATES = [
    {"measure": "negative_flip_rate", "limit": 0.01, **DRY},
    {"measure": "churn", "limit": 0.01, "k": DEPTH, **DRY},
    {"measure": "click_loss_rate", "limit": 0.01, **DRY},
    {"measure": "negative_flip_rate", "name": "of_clicks", "limit": 0.01, "query_set": "clicked", **DRY},
    {"measure": "churn", "name": "too_deep", "limit": 0.01, "query_set": "logged", "slice": "shelf=z", "k": DEPTH, **DRY},
    {"measure": "quarantine_rate", "limit": 0.01, **DRY},
]  # fmt: skip


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"flip_ks": [1, 3], "churn_k": DEPTH, "churn_p": P, "gate": GATES})


@pytest.fixture
def watched(context, tmp_path):
    """Beside the labelled queries `asked`: `logged` without relevance, and `clicked`; and a worse model, `far`."""
    platform.embedded_gallery(context, tmp_path)
    platform.import_logged(context, tmp_path, ("acme", "zoo", ""))
    platform.register_network(context, tmp_path, "far", seed=0, moved=0.1, kept=3)
    platform.certify_by_hand(context, "far")
    return context


@pytest.fixture
def refreshed(watched):
    row = platform.start(watched, "far")
    platform.work(watched, row.id)
    return row


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, limit=100_000, **filters)


def searched_in_full(context, row, name):
    """The set; the old system's (Q, DEPTH) answers; by log entry the new ones, each searched in the whole gallery."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        queries = load_query_set(connection, gallery_queries.query_set_by_name(connection, gallery.id, name))
        models = [model_queries.model_by_name(connection, each) for each in ("old", "far")]
        seqs = sorted({each["seq"] for each in read_view(connection, "churn_summary", limit=100_000)})
        matrices = {seq: load_matrix(connection, gallery.id, up_to=seq).vectors for seq in seqs}
        before = load_matrix(connection, gallery.id, before=row.id).vectors
    old, new = (encode_uris(context.encoder(model), queries.uris)[0] for model in models)
    found = {seq: top_k(new, vectors, DEPTH)[1] for seq, vectors in matrices.items()}
    return queries, top_k(old, before, DEPTH)[1], found


def means_by_loop(old, new):
    """overlap@DEPTH, RBO_ext and the share of other first answers, from the definitions, a query at a time."""
    overlaps, rbos = [], []
    for a, b in zip(old.tolist(), new.tolist(), strict=True):
        agreement = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, DEPTH + 1)]
        overlaps.append(agreement[-1])
        rbos.append(
            agreement[-1] * P**DEPTH + (1 - P) / P * sum(each * P**d for d, each in enumerate(agreement, 1))
        )
    return np.mean(overlaps), np.mean(rbos), np.mean(old[:, 0] != new[:, 0])


def test_churn_after_every_batch_is_that_of_searching_in_full(watched, refreshed):
    queries, old, found = searched_in_full(watched, refreshed, "logged")
    tenants = [query.attributes.get("tenant") for query in queries.queries]
    members = {
        "all": np.arange(len(tenants)),
        "tenant=acme": np.array([n for n, tenant in enumerate(tenants) if tenant == "acme"]),
        "tenant=zoo": np.array([n for n, tenant in enumerate(tenants) if tenant == "zoo"]),
    }
    stored = view(watched, "churn_summary", rollout=refreshed.id, queryset="logged")
    written = {(row["slice"], row["seq"]): row for row in stored}
    assert {row["slice"] for row in stored} == set(members)
    assert sorted(seq for of, seq in written if of == "all") == sorted(found), "a row after every batch"
    for of, numbers in members.items():
        last = None
        for seq in sorted(found):
            last = written.get((of, seq), last)  # a slice is written where it moves, and stands until then
            overlap, rbo, first = means_by_loop(old[numbers], found[seq][numbers])
            assert (last["k"], last["n"], last["p"]) == (DEPTH, len(numbers), P)
            assert last["overlap"] == pytest.approx(overlap, abs=1e-12), (of, seq)
            assert last["rbo"] == pytest.approx(rbo, abs=1e-12), (of, seq)
            assert last["first_changed"] == pytest.approx(first, abs=1e-12), (of, seq)
    whole = [row["overlap"] for row in stored if row["slice"] == "all"]
    assert max(whole) < 1
    assert len(set(whole)) > len(whole) / 2, "it moves from stage to stage"


def test_every_query_set_has_its_churn_and_only_known_relevance_has_flips(watched, refreshed):
    found = {row["queryset"]: row for row in view(watched, "churn_summary", slice="all")}
    assert {name: row["relevance"] for name, row in found.items()} == {
        "asked": "label", "logged": "none", "clicked": "clicks",
    }  # fmt: skip
    # The same 120 pictures: the same churn, whatever is known of them.
    assert len({(row["overlap"], row["rbo"], row["n"]) for row in found.values()}) == 1
    for name in ("flip_summary", "flip_items"):
        assert {row["queryset"] for row in view(watched, name, rollout=refreshed.id)} == {"asked"}


def test_a_model_that_answers_alike_has_no_churn(watched, tmp_path):
    platform.register_network(watched, tmp_path, "same", seed=0, moved=0.0)
    platform.certify_by_hand(watched, "same")
    row = platform.start(watched, "same")
    platform.work(watched, row.id)
    rows = view(watched, "churn_summary", rollout=row.id)
    assert len({each["seq"] for each in rows}) > 10
    assert {(each["overlap"], each["rbo"], each["first_changed"]) for each in rows} == {(1.0, 1.0, 0.0)}


def test_lost_clicks_are_counted_as_a_full_search_counts_them(watched, refreshed):
    queries, old, found = searched_in_full(watched, refreshed, "clicked")
    assert queries.relevance.answerable.sum() == 90
    counted = np.flatnonzero(queries.relevance.answerable)
    for k in (1, 3):
        rows = view(watched, "click_summary", rollout=refreshed.id, slice="all", k=k)
        assert [row["seq"] for row in rows] == sorted(found)
        before = queries.relevance.hits(old[:, :k])[counted]
        for row in rows:
            now = queries.relevance.hits(found[row["seq"]][:, :k])[counted]
            assert FlipCounts.of(before, now) == FlipCounts(
                row["kept"], row["click_losses"], row["click_gains"], row["missed"]
            )
            assert row["loss_rate"] == row["click_losses"] / row["n"]
            assert row["ci_low"] <= row["loss_rate"] <= row["ci_high"]
        lost = {
            each["query"] for each in view(watched, "click_items", k=k, reference="old_system", kind="loss")
            if each["healed_seq"] is None
        }  # fmt: skip
        last = queries.relevance.hits(found[max(found)][:, :k])
        assert lost == {
            query.key for query in queries.queries
            if query.no in counted and queries.relevance.hits(old[:, :k])[query.no] and not last[query.no]
        }  # fmt: skip
        assert rows[-1]["click_losses"] == len(lost) > 0


def test_lost_clicks_are_called_flips_nowhere(watched, refreshed, hotrefresh):
    registry = CollectorRegistry()
    registry.register(LedgerCollector(watched, Replicas(watched)))
    lines = generate_latest(registry).decode().splitlines()
    newest = view(watched, "click_summary", rollout=refreshed.id, slice="all", k=1)[-1]
    labels = '{queryset="pics/clicked"}'
    assert f"hotrefresh_click_loss_ratio{labels} {newest['loss_rate']}" in lines
    assert f"hotrefresh_click_loss_ratio_count{labels} 90.0" in lines
    churn = view(watched, "churn_summary", rollout=refreshed.id, queryset="logged", slice="all")[-1]
    assert f'hotrefresh_overlap_ratio{{queryset="pics/logged"}} {churn["overlap"]}' in lines
    assert f'hotrefresh_rbo_ratio{{queryset="pics/logged"}} {churn["rbo"]}' in lines
    flips = [line for line in lines if "flip" in line and not line.startswith("#")]
    assert flips
    assert not [line for line in flips if "clicked" in line or "logged" in line]
    assert "clicked" not in hotrefresh("ledger", "flips", "pics", "-o", "json")[1]
    assert "clicked" not in hotrefresh("ledger", "flips", "pics", "--summary", "-o", "json")[1]
    measured = {row["value"] for row in view(watched, "refresh_curve", against_order="measured")}
    asked = view(watched, "flip_summary", rollout=refreshed.id, slice="all")
    assert measured <= {(row["both_right"] + row["positive_flips"]) / row["n"] for row in asked}
    status = read_status(watched, refreshed.id)
    assert [row["queryset"] for row in status.flips] == ["asked"]
    assert [row["queryset"] for row in status.clicks] == ["clicked"]


def test_gates_judge_each_kind_of_query_set_by_what_is_known_of_it(watched, refreshed):
    newest = read_status(watched, refreshed.id).gates
    answers = {(row["gate"], row["queryset"]): row for row in newest}
    assert set(answers) == {
        ("negative_flip_rate", "asked"), ("click_loss_rate", "clicked"), ("churn", "asked"), ("churn", "logged"),
        ("churn", "clicked"), ("of_clicks", "clicked"), ("too_deep", "logged"), ("quarantine_rate", "asked"),
        ("quarantine_rate", "logged"), ("quarantine_rate", "clicked"),
    }  # fmt: skip
    for name in ("asked", "logged", "clicked"):
        (last,) = read_last(watched, refreshed, "churn_summary", name)
        found = answers["churn", name]
        assert (found["result"], found["sample_n"]) == ("fail", 120)
        assert found["value"] == pytest.approx(1 - last["overlap"], abs=1e-15)
    (clicks,) = read_last(watched, refreshed, "click_summary", "clicked", k=1)
    found = answers["click_loss_rate", "clicked"]
    assert (found["result"], found["value"], found["sample_n"]) == ("fail", clicks["loss_rate"], 90)
    for gate, name, reason in (
        ("of_clicks", "clicked", "query set 'clicked' has no relevance by label or pairs"),
        ("too_deep", "logged", "no churn is measured at k = 5 in slice 'shelf=z'"),
    ):
        assert (answers[gate, name]["result"], answers[gate, name]["reason"]) == ("inconclusive", reason)
    assert answers["quarantine_rate", "logged"]["result"] == "pass"


def read_last(context, row, name, queryset, **filters):
    with context.engine.connect() as connection:
        return read_view(
            connection, name, newest=True, rollout=row.id, queryset=queryset, slice="all", **filters
        )


def test_an_evaluator_that_dies_in_between_writes_the_same_churn(watched, refreshed):
    def written():
        clicks = [{**row, "at": None} for row in view(watched, "click_summary", rollout=refreshed.id)]
        changes = view(watched, "click_items", rollout=refreshed.id)
        changes = [{**row, "opened_at": None, "healed_at": None} for row in changes]
        churn = [{**row, "at": None} for row in view(watched, "churn_summary", rollout=refreshed.id)]
        return churn + clicks + changes

    once = written()
    with watched.engine.begin() as connection:
        for table in ("flip", "evaluation", "churn", "click_evaluation", "click_change"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    half = max(row["seq"] for row in once if "seq" in row) - 10
    first = Evaluator(watched, refreshed.id)
    real = first._record
    first._record = lambda seq, items, stages: real(seq, items, stages) if seq < half else None
    first.catch_up()  # dies with the last ten batches unwritten
    assert 0 < len(written()) < len(once)
    evaluate_rollout(watched, refreshed.id, {})
    assert written() == once


def test_nothing_is_certified_by_clicks_or_on_nothing(watched):
    for name, what in (("clicked", "has clicks"), ("logged", "has no relevance")):
        with pytest.raises(UsageError, match=f"query set '{name}' {what}"):
            certify.certify(watched, certify.CertifyRequest("old", "kin", "pics", name))
    # The only one that can be meant needs no name.
    assert platform.certify_pair(watched, "old", "kin") == "certified"


def test_commands_show_churn_and_clicks_as_the_views_have_them(watched, refreshed, hotrefresh, tmp_path):
    code, out, _ = hotrefresh("ledger", "churn", "pics", "-o", "json")
    shown = json.loads(out)["churn"]
    assert code == 0
    assert [row["queryset"] for row in shown] == ["asked", "logged", "clicked"]
    for row in shown:
        (last,) = read_last(watched, refreshed, "churn_summary", row["queryset"])
        assert [row[name] for name in ("overlap", "rbo", "n", "seq")] == [
            last[name] for name in ("overlap", "rbo", "n", "seq")
        ]
    one = ("ledger", "churn", "pics", "--queryset", "logged")
    history = json.loads(hotrefresh(*one, "--history", "--slice", "each", "-o", "json")[1])["churn"]
    assert len(history) == len(view(watched, "churn_summary", queryset="logged"))
    (tenant,) = json.loads(hotrefresh(*one, "--slice", "tenant=zoo", "-o", "json")[1])["churn"]
    assert tenant["n"] == 40
    (clicks,) = json.loads(hotrefresh("ledger", "clicks", "pics", "-o", "json")[1])["click_summary"]
    losses = json.loads(
        hotrefresh("ledger", "clicks", "pics", "--items", "--kind", "loss", "--k", 1, "-o", "json")[1]
    )["clicks"]
    assert clicks["click_losses"] == sum(row["healed_seq"] is None for row in losses) > 0
    assert "overlap" in hotrefresh(*one)[1]
    assert "click losses" in hotrefresh("ledger", "clicks", "pics")[1]
    _, screen, _ = hotrefresh("rollout", "status", refreshed.id)
    text = " ".join(screen.split())
    (last,) = read_last(watched, refreshed, "churn_summary", "logged")
    assert f"logged: overlap {last['overlap']:.2%} of the first 5" in text
    assert f"clicked: {clicks['click_losses']} lost" in text
    status = json.loads(hotrefresh("rollout", "status", refreshed.id, "-o", "json")[1])
    assert {row["queryset"] for row in status["churn"]} == {"asked", "logged", "clicked"}
    for name in ("churn_summary", "click_summary", "click_items"):
        code, _, said = hotrefresh(
            "ledger", "export", name, tmp_path / f"{name}.parquet", "--rollout", "pics"
        )
        assert code == 0, said
    for wrong, exit_code, said in (
        (("ledger", "churn", "pics", "--slice", "each"), 2, "add --history"),
        (("ledger", "churn", "pics", "--queryset", "nobody"), 3, "no query set 'nobody'"),
        (("ledger", "clicks", "pics", "--kind", "loss"), 2, "add --items"),
        (("ledger", "churn", "pics", "--history", "--slice"), 2, "requires an argument"),
    ):
        code, _, error = hotrefresh(*wrong)
        assert (code, said in error) == (exit_code, True), error
    assert {"churn_summary", "click_summary", "click_items"} <= set(VIEWS)


def test_a_refresh_that_only_unlabelled_queries_watch_can_be_finalized(context, tmp_path, settings):
    platform.embedded_gallery(context, tmp_path)
    with context.engine.begin() as connection:  # as if nothing had ever been known but the certificate
        connection.exec_driver_sql("UPDATE query_set SET relevance = 'none'")
    row = platform.start(context)
    assert platform.work(context, row.id).state == "finalizable"
    assert view(context, "flip_summary") == []
    assert read_status(context, row.id).flips == ()
    assert finish.finalize(context, row.id).state == "finalized"
