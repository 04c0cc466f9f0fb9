"""What a scrape says, against the ledger: names, numbers, and that history does not make it longer."""

from __future__ import annotations

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from orchestrator import failpoints
from orchestrator.ledger.queries import metrics as metric_queries
from orchestrator.service import advance, finish, galleries, tuning
from orchestrator.service.rollouts import rollback
from tests.engine import platform
from tests.engine.api_server import client_of, until
from workers.drain import drain


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def client(world, monkeypatch):
    monkeypatch.setattr("orchestrator.api.metrics.KEPT_S", -1.0)
    with client_of(world) as opened:
        yield opened


def scrape(client):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_a_scrape_has_the_names_of_the_contract_and_the_ledgers_numbers(world, client):
    first = scrape(client)
    assert first["hotrefresh_coverage_ratio", ("gallery", "pics"), ("model", "old")] == 1
    assert first["hotrefresh_batch_duration_seconds_count", ("stage", "encode")] == 0
    row = platform.work(world, platform.start(world).id)
    client.post("/search/pics", json={"key": "class-04/0.png"})
    found = scrape(client)
    assert found["hotrefresh_items", ("rollout", str(row.id)), ("state", "committed")] == row.n_items
    assert found["hotrefresh_coverage_ratio", ("gallery", "pics"), ("model", "kin")] == 1
    assert found["hotrefresh_batch_duration_seconds_count", ("stage", "encode")] == row.n_batches
    assert found["hotrefresh_batch_duration_seconds_sum", ("stage", "encode")] > 0
    # A commit's time stands in the row of the next commit: the last one's is never known.
    assert found["hotrefresh_batch_duration_seconds_count", ("stage", "commit")] == row.n_batches - 1
    assert found["hotrefresh_batch_duration_seconds_sum", ("stage", "commit")] > 0
    assert found["hotrefresh_lease_expired_total", ("rollout", str(row.id))] == 0
    assert found["hotrefresh_search_duration_seconds_count",] == 1
    assert found["hotrefresh_negative_flip_ratio_count", ("queryset", "pics/asked")] > 20
    assert found["hotrefresh_queue_oldest_age_seconds",] == 0
    info = ("from", "old"), ("rollout", str(row.id)), ("state", "finalizable"), ("to", "kin")
    assert found[("hotrefresh_rollout_info", *info)] == 1
    assert any(name == "hotrefresh_build_info" for name, *_ in found)
    until(lambda: scrape(client)["hotrefresh_replica_lag_batches", ("gallery", "pics")] == 0)
    assert not any("class-" in str(labels) for _, *labels in found)  # never an item


def test_every_query_set_has_its_ratio(world, client, tmp_path):
    more = platform.draw_pictures(tmp_path / "more", 2, seed=9)
    galleries.import_query_set(world, "pics", "second", str(more))
    platform.work(world, platform.start(world).id)
    querysets = {
        dict(labels)["queryset"]
        for name, *labels in scrape(client)
        if name == "hotrefresh_negative_flip_ratio"
    }
    assert querysets == {"pics/asked", "pics/second"}


def test_what_was_rolled_back_is_neither_queue_nor_flips(world, client):
    row = platform.start(world)
    rollback(world, row.id)
    found = {name for name, *_ in scrape(client)}
    assert "hotrefresh_queue_depth" not in found
    assert "hotrefresh_negative_flip_ratio" not in found


WINDOW = "hotrefresh_rollback_window_closes_timestamp_seconds"


def test_the_end_of_a_rollback_window_is_told_while_a_rollout_can_go_back(world, client):
    row = platform.work(world, platform.start(world).id)
    assert WINDOW not in {name for name, *_ in scrape(client)}
    finished_at = finish.finalize(world, row.id).finished_at
    tuning.set_values(world, row.id, {"rollback_window_s": 3600.0})
    assert scrape(client)[WINDOW, ("rollout", str(row.id))] == pytest.approx(finished_at.timestamp() + 3600)
    assert platform.certify_pair(world, "kin", "old") == "certified"
    undone = rollback(world, platform.start(world, "old").id)
    assert undone.state == "rolled_back"
    assert (WINDOW, ("rollout", str(row.id))) in scrape(client), "what was taken back did not come after it"
    tuning.set_values(world, row.id, {"rollback_window_s": 0.0})
    finish.reclaim(world, "pics")
    assert WINDOW not in {name for name, *_ in scrape(client)}


def test_decisions_of_the_past_do_not_hide_the_newest(world, client):
    row = platform.start(world)
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO gate_decision (rollout_id, gate, result, sample_n, effect, decided_at) "
            f"SELECT {row.id}, 'nfr', 'pass', 1, 'none', clock_timestamp() - (1000 - i) * interval '1 second' "
            "FROM generate_series(1, 600) AS i"
        )
        connection.exec_driver_sql(
            "INSERT INTO gate_decision (rollout_id, gate, result, sample_n, effect) "
            f"VALUES ({row.id}, 'nfr', 'fail', 1, 'pause')"
        )
    assert (
        scrape(client)["hotrefresh_gate_state", ("gate", "nfr"), ("queryset", ""), ("rollout", str(row.id))]
        == -1
    )


def test_old_rollouts_do_not_make_a_scrape_longer(world, client):
    row = platform.start(world)
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO rollout (gallery_id, kind, to_model_id, state, order_name, config, batch_size, n_items, plan_items, "
            "extent_uri, actor) SELECT gallery_id, 'initial', to_model_id, 'cancelled', 'row', '{}', 16, 1, 1, 'x', 'test' "
            f"FROM rollout, generate_series(1, 300) WHERE id = {row.id}"
        )
    shown = {dict(labels)["rollout"] for name, *labels in scrape(client) if name == "hotrefresh_items"}
    assert str(row.id) in shown
    assert len(shown) == 2  # the one that goes on, and the newest


def test_a_commit_whose_answer_was_lost_has_no_time_and_the_one_before_it_has_it_once(world, monkeypatch):
    def lose_the_answer():
        lost = psycopg.OperationalError("the connection is closed")
        raise OperationalError("COMMIT", {}, lost, connection_invalidated=True)

    row = advance.advance(world, platform.start(world).id)
    monkeypatch.setattr(failpoints, "_armed", {"commit_unseen": failpoints._Armed(lose_the_answer, 3)})
    assert drain(world, row.id, owner="test").batches == row.n_batches
    with world.engine.connect() as connection:
        rows = metric_queries.timings_after(connection, row.gallery_id, 0, 1000)[-row.n_batches :]
    # The row of the first has none before it; the third commit loses its answer, so the fourth row has no time of it.
    timed = [True] * row.n_batches
    timed[0] = timed[3] = False
    assert [each["commit"] is not None for each in rows] == timed
