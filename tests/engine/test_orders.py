"""Rollouts in every order that a rollout may use, and those that are refused before anything is written."""

from __future__ import annotations

import time

import numpy as np
import pytest

from models import adapters
from orchestrator.bootstrap import open_context
from orchestrator.core import orders, plan, prototypes
from orchestrator.core.orders import ORDERS, Input, real_orders
from orchestrator.core.plan import order_rows
from orchestrator.errors import ExitCode, UsageError
from orchestrator.ledger import database
from orchestrator.ledger.database import open_engine
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.service import advance, demand, models, plan_preview
from orchestrator.service.start import StartRequest
from orchestrator.serving.matrix import load_matrix, plan_rows
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    with context.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        demand.add_counts(connection, gallery.id, {row: row for row in range(0, 240, 7)})
    return context


def certified_adapter(context, folder, name, method, **options):
    """An adapter from `old` to `kin`, fitted in a moment; its certificate is made by hand."""
    rng = np.random.default_rng(0)
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        old, kin = (model_queries.model_by_name(connection, each) for each in ("old", "kin"))
        stored = load_matrix(connection, gallery.id).vectors
    near = stored + rng.normal(0, 0.02, stored.shape)
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    adapters.fit_adapter(
        method, stored, near, folder=folder / name, name=name, modality="image", options=options,
        source_fingerprint=old.fingerprint, target_fingerprint=kin.fingerprint,
    )  # fmt: skip
    row = models.import_adapter(context, folder / name, name, old, kin)
    with context.engine.begin() as connection:
        model_queries.insert_certificate(
            connection, query_model_id=kin.id, gallery_model_id=old.id, adapter_id=row.id, verdict="certified", reason="by hand",
            query_set_id=gallery_queries.query_sets_of_gallery(connection, gallery.id)[0].id, measured={},
        )  # fmt: skip
    return row


def stored_scores(context, row):
    """The plan's order, and the mean score that the ledger holds for each batch."""
    with context.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT uncertainty FROM batch WHERE rollout_id = %s ORDER BY first_rank", (row.id,)
        )
        return plan_rows(connection, row, 0), np.array([each[0] for each in found])


OF_CODECS = "flipped_bits"
"""Needs a codec: see test_recode.py."""


@pytest.mark.parametrize("name", sorted(set(real_orders()) - {OF_CODECS}))
def test_a_rollout_in_every_order_runs_to_its_end(world, tmp_path, name):
    needs_adapter = Input.LOG_VARIANCE in ORDERS[name].needs
    if needs_adapter:
        certified_adapter(world, tmp_path, "lift", "mlp", hidden=16, steps=60)
    row = platform.start(world, order=name, adapter="lift" if needs_adapter else None)
    done = platform.work(world, row.id)
    assert (done.state, done.committed_items) == ("finalizable", done.n_items)
    row_of, means = stored_scores(world, done)
    assert np.array_equal(np.sort(row_of), np.arange(done.plan_items))
    assert np.isfinite(means).all()
    assert (np.diff(means) <= 1e-12).all(), "higher is earlier"


@pytest.mark.parametrize("name", ["class_distance", "neighbour_disagreement"])
def test_an_order_over_labels_clusters_a_gallery_where_clusters_are_asked_for(world, name):
    request = {"order": name, "prototypes": "clusters", "seed": 3}
    by_cluster = plan_preview.preview(world, StartRequest("pics", "kin", **request))
    assert by_cluster == plan_preview.preview(world, StartRequest("pics", "kin", **request)), "seeded"
    by_class = plan_preview.preview(world, StartRequest("pics", "kin", **request | {"prototypes": "classes"}))
    assert by_cluster.first_items != by_class.first_items


@pytest.mark.parametrize("name", ["class_distance", "neighbour_disagreement"])
def test_an_order_over_labels_clusters_a_gallery_without_labels(world, name):
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE item SET label = NULL")
    request = StartRequest("pics", "kin", order=name)
    assert len(plan_preview.preview(world, request, first=240).first_items) == 240


@pytest.mark.parametrize("name", sorted(set(real_orders()) - {"random", "row", OF_CODECS}))
def test_the_preview_shows_the_order_that_the_rollout_will_have(world, tmp_path, name):
    certified_adapter(world, tmp_path, "lift", "mlp", hidden=16, steps=60)
    request = StartRequest("pics", "kin", adapter="lift", order=name, prototypes="classes")
    previewed = plan_preview.preview(world, request, first=240).first_items
    row = platform.start(world, order=name, adapter="lift")
    advance.advance(world, row.id)
    with world.engine.connect() as connection:
        row = rollout_queries.rollout_by_id(connection, row.id)
        items = gallery_queries.items_of_rows(connection, row.gallery_id, list(range(240)))
        planned = plan_rows(connection, row, 0)
    keys = {item.row: item.key for item in items}
    assert [item["key"] for item in previewed] == [keys[int(each)] for each in planned]


def test_a_sigma_rollout_takes_the_items_by_the_variance_that_its_adapter_predicts(world, tmp_path):
    adapter = certified_adapter(world, tmp_path, "lift", "mlp", hidden=16, steps=60)
    row = advance.advance(world, platform.start(world, order="sigma", adapter="lift").id)
    with world.engine.connect() as connection:
        old = load_matrix(connection, row.gallery_id, before=row.id).vectors
        planned = plan_rows(connection, row, 0)
    predicted = world.adapter(adapter).transform(old)[1]
    assert len(np.unique(predicted)) > 200, "an adapter that says the same of all would show nothing"
    np.testing.assert_array_equal(planned, order_rows(predicted))


def test_what_has_no_stored_vector_comes_first_in_a_sigma_rollout(world, tmp_path, monkeypatch):
    certified_adapter(world, tmp_path, "lift", "mlp", hidden=16, steps=60)
    row = platform.start(world, order="sigma", adapter="lift")
    whole = load_matrix

    def without_some(*arguments, **named):
        matrix = whole(*arguments, **named)
        matrix.vectors[[7, 200]] = 0
        return matrix

    monkeypatch.setattr(advance, "load_matrix", without_some)
    scores = advance.score_rows(world, row)
    assert np.isfinite(scores).all()
    assert {7, 200} <= set(np.flatnonzero(scores == scores.max()).tolist())


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("sigma", None, "has no adapter"),
        ("sigma", "procrustes", "predicts none"),
        ("oracle", None, "simulations only: it looks at the new embeddings"),
        ("best", None, "there is no order 'best'"),
    ],
)
def test_an_order_that_this_rollout_cannot_use_is_refused_before_anything_is_written(
    world, tmp_path, name, method, says
):
    adapter = certified_adapter(world, tmp_path, "lift", method).name if method else None
    request = StartRequest("pics", "kin", adapter=adapter, order=name, prototypes="classes")
    with world.engine.connect() as connection:
        before = rollout_queries.latest_rollout(
            connection, gallery_queries.gallery_by_name(connection, "pics").id
        )
    for call in (
        lambda: platform.start(world, order=name, adapter=adapter),
        lambda: plan_preview.preview(world, request),
    ):
        with pytest.raises(UsageError, match=says) as refused:
            call()
        assert refused.value.exit_code == ExitCode.USAGE
        assert "entropy" in str(refused.value)
    with world.engine.connect() as connection:
        assert rollout_queries.latest_rollout(connection, before.gallery_id).id == before.id
        assert rollout_queries.serving_now(connection, before.gallery_id).model_id != model_queries.model_by_name(
            connection, "kin"
        ).id  # fmt: skip


def test_nothing_is_computed_for_a_plan_while_a_transaction_is_open(world, tmp_path, monkeypatch):
    """The ledger ends a transaction that is idle for as long as the scores of a large gallery take."""
    adapter = certified_adapter(world, tmp_path, "lift", "mlp", hidden=16, steps=10)
    watcher = open_engine(world.settings.database_url, pooled=False)
    computed, slow = [], 0.0

    def watched(owner, name):
        whole = getattr(owner, name)

        def run(*arguments, **named):
            time.sleep(slow if name == "order_scores" else 0)
            with watcher.connect() as connection:
                idle = connection.exec_driver_sql(
                    "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"
                ).scalars()
                computed.append((name, list(idle)))
            return whole(*arguments, **named)

        monkeypatch.setattr(owner, name, run)

    watched(orders, "order_scores")
    for name in ("class_means", "kmeans_centroids", "nearest_centroids"):
        watched(prototypes, name)
    for name in ("order_rows", "invert", "to_chunks"):
        watched(plan, name)
    watched(type(world.adapter(adapter)), "transform")
    for chosen, asked in (
        ("entropy", {"prototypes": "classes"}),
        ("entropy", {"prototypes": "clusters", "adapter": "lift"}),
        ("class_distance", {"prototypes": "clusters"}),
        ("demand", {"prototypes": "classes"}),
        ("sigma", {"adapter": "lift"}),
    ):
        assert plan_preview.preview(world, StartRequest("pics", "kin", order=chosen, **asked)).first_items
    assert {name for name, _ in computed} == {
        "order_scores", "class_means", "kmeans_centroids", "nearest_centroids", "order_rows", "transform",
    }  # fmt: skip
    row = platform.start(world)
    monkeypatch.setattr(database, "IDLE_IN_TRANSACTION_S", 1)
    with open_context(world.settings) as impatient:
        slow = 1.2
        assert advance.advance(impatient, row.id).state == "backfilling"
        assert advance.advance(impatient, row.id).n_batches == 15
    assert {name for name, _ in computed[-5:]} >= {"order_scores", "order_rows", "invert", "to_chunks"}
    assert [(name, idle) for name, idle in computed if idle] == []
    watcher.dispose()
