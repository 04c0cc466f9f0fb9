"""Flips in the ledger at several k, by slice and by cause, against searching the mixture of every stage in full."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.flips import FlipCounts
from orchestrator.core.metrics import top_k
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import galleries
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.evaluator import Evaluator
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"flip_ks": [1, 3]})


@pytest.fixture
def refreshed(context, tmp_path):
    """A rollout to a model that is worse here, with a second query set that has tenants; its old and new answers."""
    platform.embedded_gallery(context, tmp_path)
    rows = []
    for number, picture in enumerate(sorted((tmp_path / "queries").rglob("*.png"))):
        tenant = ["acme", "zoo", "acme", ""][number % 4]
        rows.append((f"q{number}", picture, picture.parent.name, tenant, "few" if number < 3 else "many"))
    sliced = platform.write_csv(tmp_path / "sliced.csv", ("key", "path", "label", "tenant", "shelf"), rows)
    galleries.import_query_set(context, "pics", "sliced", str(sliced))
    platform.register_network(context, tmp_path, "far", seed=0, moved=0.1, kept=3)
    platform.certify_by_hand(context, "far")
    row = platform.start(context, "far")
    platform.work(context, row.id)
    return row


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, limit=100_000, **filters)


def stages_in_full(context, row):
    """By log entry: (Q, 3) answers of the new model to set `sliced`; and of the old system; the set; new rows so far."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        queries = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, gallery.id, "sliced")
        )
        old, new = (model_queries.model_by_name(connection, name) for name in ("old", "far"))
        seqs = sorted(
            {s["seq"] for s in read_view(connection, "flip_summary", limit=100_000, rollout=row.id)}
        )
        matrices = {seq: load_matrix(connection, gallery.id, up_to=seq) for seq in seqs}
        before = load_matrix(connection, gallery.id, before=row.id).vectors
    old_queries, new_queries = (encode_uris(context.encoder(m), queries.uris)[0] for m in (old, new))
    found = {seq: top_k(new_queries, matrix.vectors, 3)[1] for seq, matrix in matrices.items()}
    fresh = {seq: matrix.version == row.id for seq, matrix in matrices.items()}
    return found, top_k(old_queries, before, 3)[1], queries, fresh


def counts_of(row):
    return FlipCounts(row["both_right"], row["negative_flips"], row["positive_flips"], row["both_wrong"])


def test_every_k_and_slice_is_counted_as_a_full_search_counts_it(context, refreshed):
    found, old, queries, _ = stages_in_full(context, refreshed)
    attributes = [query.attributes for query in queries.queries]
    members = {
        "all": np.arange(len(attributes)),
        "tenant=acme": np.array([n for n, a in enumerate(attributes) if a.get("tenant") == "acme"]),
        "tenant=zoo": np.array([n for n, a in enumerate(attributes) if a.get("tenant") == "zoo"]),
        "shelf=(other)": np.arange(3),
        "shelf=many": np.arange(3, len(attributes)),
    }
    stored = view(context, "flip_summary", rollout=refreshed.id, queryset="sliced")
    assert {(row["k"], row["slice"]) for row in stored} == {(k, name) for k in (1, 3) for name in members}
    written = {(row["k"], row["slice"], row["seq"]): counts_of(row) for row in stored}
    for k in (1, 3):
        for name, numbers in members.items():
            right_before = queries.relevance.hits(old[:, :k])[numbers]
            last, written_at = None, 0
            for seq in sorted(found):
                right = queries.relevance.hits(found[seq][:, :k])[numbers]
                if (k, name, seq) in written:
                    last = written[k, name, seq]
                    written_at += 1
                # A slice is written where its counts move, and stands until then.
                assert last == FlipCounts.of(right_before, right), (k, name, seq)
            if name == "shelf=(other)":
                assert 1 < written_at < len(found), "three queries turn at few batches"
    assert any(row["negative_flips"] for row in stored if row["slice"] == "tenant=zoo")


def test_flips_that_nothing_can_heal_are_the_models_and_all_others_the_mixtures(context, refreshed):
    found, _, queries, fresh = stages_in_full(context, refreshed)
    last = max(found)
    numbers = {query.key: query.no for query in queries.queries}
    causes = set()
    for k in (1, 3):
        flips = view(context, "flip_items", rollout=refreshed.id, queryset="sliced", k=k)
        assert {f["cause"] for f in flips if f["kind"] == "positive"} <= {None}
        for flip in [f for f in flips if f["kind"] == "negative"]:
            query = numbers[flip["query"]]
            until = last if flip["healed_seq"] is None else flip["healed_seq"] - 1
            answers, relevant = found[until][query, :k], queries.relevance.of(query)
            beyond = fresh[until][answers].all() and fresh[until][relevant].all()
            assert flip["cause"] == ("model" if beyond else "mixed_stage")
            causes.add((flip["cause"], flip["healed_seq"] is None))
        open_now = [f for f in flips if f["kind"] == "negative" and f["healed_seq"] is None]
        assert {f["cause"] for f in open_now} <= {"model"}, "everything is refreshed"
    assert causes == {("model", True), ("mixed_stage", False)}


def test_recall_gained_is_positive_minus_negative_flips_in_every_row(context, refreshed):
    rows = view(context, "flip_summary", rollout=refreshed.id)
    assert len(rows) > 50
    for row in rows:
        right_before = row["both_right"] + row["negative_flips"]
        right_now = row["both_right"] + row["positive_flips"]
        assert right_now - right_before == row["positive_flips"] - row["negative_flips"]
        assert (row["pfr"] - row["nfr"]) * row["n"] == pytest.approx(right_now - right_before, abs=1e-9)


def test_an_evaluator_that_dies_in_between_writes_the_same_flips_slices_and_causes(context, refreshed):
    def written():
        keep = [{**row, "at": None} for row in view(context, "flip_summary", rollout=refreshed.id)]
        flips = view(context, "flip_items", rollout=refreshed.id)
        return keep, [{**row, "opened_at": None, "healed_at": None} for row in flips]

    once = written()
    with context.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM flip")
        connection.exec_driver_sql("DELETE FROM evaluation")
    half = max(row["seq"] for row in once[0]) - 10
    first = Evaluator(context, refreshed.id)
    real = first._record
    first._record = lambda seq, items, stages: real(seq, items, stages) if seq < half else None
    first.catch_up()  # dies with the last ten batches unwritten
    assert written() != once
    evaluate_rollout(context, refreshed.id, {})
    assert written() == once


def test_under_a_k_that_is_asked_for_later_the_whole_history_is_counted(context, refreshed):
    before = view(context, "flip_summary", rollout=refreshed.id, queryset="asked")
    with context.engine.begin() as connection:
        rollout_queries.set_config(connection, refreshed.id, {"flip_ks": [2]})
    evaluate_rollout(context, refreshed.id, {})
    rows = view(context, "flip_summary", rollout=refreshed.id, queryset="asked")
    assert {row["k"] for row in rows} == {1, 2, 3}
    assert [row for row in rows if row["k"] != 2] == before
    assert len([row for row in rows if row["k"] == 2]) == len([row for row in rows if row["k"] == 1])
