"""Migrations on a real PostgreSQL: up, down, up again; two at once; what dashboards may read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from orchestrator.ledger import database
from orchestrator.ledger.queries.reporting import VIEWS, read_view

COLUMNS = {
    "rollout_status": "id gallery kind from_model to_model adapter state sub_state reason total pending leased committed "
    "quarantined rate_per_s eta_s coverage started_at last_progress_at paused_s actor throttle_reason throttle_value "
    "throttle_limit strategy plan_revision",
    "queue_status": "rollout band queue_state depth leased oldest_age_s",
    "worker_health": "worker host pid device version last_heartbeat expected_interval_s live success_count error_count "
    "last_error",
    "errors": "rollout gallery item attempt class type message first_seen last_seen count",
    "embedding_versions": "gallery item model adapter rollout batch uncertainty committed_at",
    "coverage_by_model": "gallery model items ratio",
    "flip_summary": "rollout gallery queryset slice seq coverage k both_right negative_flips positive_flips both_wrong n nfr pfr "
    "ci_low ci_high previous_negative_flips previous_positive_flips at",
    "flip_items": "rollout queryset query kind reference old_item new_item old_score new_score cause opened_seq healed_seq "
    "opened_at healed_at k attributes old_verified new_verified old_matches new_matches",
    "churn_summary": "rollout gallery queryset relevance slice seq coverage k n overlap rbo p first_changed point at",
    "click_summary": "rollout gallery queryset slice seq coverage k kept click_losses click_gains missed n loss_rate gain_rate "
    "ci_low ci_high previous_click_losses previous_click_gains at",
    "click_items": "rollout queryset query kind reference old_item new_item old_score new_score cause opened_seq healed_seq "
    "opened_at healed_at k attributes",
    "match_threshold": "rollout gallery queryset seq coverage n true_pairs micro_ap recall_at_p90 threshold old_micro_ap "
    "old_recall_at_p90 old_threshold accepted accepted_right lost gained at scores background_n neighbour beta",
    "refresh_curve": "rollout coverage metric value against_order queryset",
    "gate_decisions": "rollout gate result value limit sample_n dry_run decided_at effect queryset measure slice k seq reason "
    "times last_at newest",
    "traffic": "rollout gallery revision canary shadow actor at newest",
    "shadow": "rollout gallery coverage_from k n overlap rbo p first_changed label_n label_both_right label_negative_flips "
    "label_positive_flips label_both_wrong label_negative_flip_rate dropped failed last_seq first_at last_at",
    "shadow_samples": "rollout id at served seq coverage old_rows old_scores new_rows new_scores content",
    "downstream_modules": "module model architecture metric dim digest created_at retired_at",
    "downstream_certificates": "id module own_model model metric old_value new_value n low high accepted_loss verdict reason "
    "source created_at newest",
    "serving_history": "gallery model rollout valid_from valid_to actor reason",
    "audit": "at actor action target before after",
}


@pytest.fixture
def engine(empty_database):
    engine = database.open_engine(empty_database, pooled=False)
    yield engine
    engine.dispose()


def _tables(engine) -> set[str]:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables "
            "WHERE table_schema IN ('hotrefresh', 'reporting')"
        )
        return {name for (name,) in rows}


def test_an_empty_database_goes_up_down_and_up_again(engine):
    database.upgrade(engine)
    first = _tables(engine)
    assert database.current(engine) == database.HEAD
    assert "hotrefresh.batch" in first
    database.downgrade(engine, "base")
    assert _tables(engine) == {"hotrefresh.alembic_version"}
    assert database.current(engine) is None
    database.upgrade(engine)
    assert _tables(engine) == first


def test_each_single_step_can_be_taken_back(engine):
    database.upgrade(engine, "0001")
    assert not any(name.startswith("reporting.") for name in _tables(engine))
    database.upgrade(engine, "0002")
    database.downgrade(engine, "0001")
    assert not any(name.startswith("reporting.") for name in _tables(engine))
    database.upgrade(engine)
    assert database.current(engine) == database.HEAD


def test_upgrades_at_once_take_turns(empty_database, engine):
    code = "import sys; from orchestrator.ledger import database as d; d.upgrade(d.open_engine(sys.argv[1]))"
    running = [
        subprocess.Popen([sys.executable, "-c", code, empty_database], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 4
    assert database.current(engine) == database.HEAD


def test_every_reporting_view_has_the_columns_of_the_contract(engine):
    database.upgrade(engine)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns "
            "WHERE table_schema = 'reporting' GROUP BY table_name"
        )
        assert {row[0]: row[1] for row in rows} == COLUMNS


def test_every_reporting_view_can_be_read_and_an_unknown_one_names_those_there_are(engine):
    database.upgrade(engine)
    with engine.connect() as connection:
        for view in VIEWS:
            assert read_view(connection, view) == []
        with pytest.raises(database.UsageError, match="rollout_status"):
            read_view(connection, "pg_shadow")
        with pytest.raises(database.UsageError, match="cannot be filtered"):
            read_view(connection, "audit", before="1")


def test_the_dashboard_role_reads_the_views_and_no_table(engine):
    database.upgrade(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
        for view in COLUMNS:
            connection.exec_driver_sql(f"SELECT * FROM reporting.{view} LIMIT 1")
        with pytest.raises(ProgrammingError, match="permission denied"):
            connection.exec_driver_sql("SELECT * FROM hotrefresh.audit")


def test_the_schema_head_in_code_is_the_newest_migration():
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(database._alembic_config()).get_current_head() == database.HEAD


def test_a_url_of_another_database_is_refused_with_what_to_write():
    with pytest.raises(database.UsageError, match="postgresql://"):
        database.open_engine("mysql://localhost/x")


def test_a_database_that_does_not_answer_is_named_without_its_password():
    engine = database.open_engine("postgresql://someone:s3cret@127.0.0.1:9/none", pooled=False)
    with pytest.raises(database.UnreachableError, match="does not answer") as caught:
        database.check(engine)
    assert "s3cret" not in str(caught.value)


def test_an_older_schema_of_somebody_elses_database_is_left_alone_and_ours_is_upgraded(engine):
    database.upgrade(engine, "0001")
    with pytest.raises(database.ConflictError, match="hotrefresh db upgrade"):
        database.ensure_schema(engine, ours=False)
    assert database.current(engine) == "0001"
    database.ensure_schema(engine, ours=True)
    assert database.current(engine) == database.HEAD


def test_an_empty_database_gets_the_schema_whosever_it_is(engine):
    database.ensure_schema(engine, ours=False)
    assert database.current(engine) == database.HEAD


def _rollout_of_before(engine, *, adapter: bool) -> None:
    """A gallery with a finished rollout in a ledger of revision 0004."""
    used = "1" if adapter else "NULL"
    statements = (
        (
            "INSERT INTO model (name, modality, architecture, dim, digest, fingerprint, uri, manifest) "
            "SELECT m, 'text', 'x', 2, m, m, 'x', '{}' FROM unnest(ARRAY['old', 'new']) AS m"
        ),
        (
            "INSERT INTO adapter (name, source_model_id, target_model_id, digest, fingerprint, uri, manifest) "
            "VALUES ('a', 1, 2, 'a', 'a', 'x', '{}')"
        ),
        "INSERT INTO gallery (name, modality, source, n_items) VALUES ('g', 'text', 'x', 7)",
        (
            "INSERT INTO rollout (gallery_id, kind, from_model_id, to_model_id, adapter_id, state, order_name, config, "
            f"batch_size, n_items, plan_items, extent_uri, actor) VALUES (1, 'upgrade', 1, 2, {used}, 'finalized', "
            "'row', '{}', 4, 7, 7, 'x', 'me')"
        ),
    )
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("adapter", "strategy", "lifted"), [(False, "reembed", 0), (True, "transform-then-reembed", 7)]
)
def test_rollouts_of_before_get_the_strategy_they_had(engine, adapter, strategy, lifted):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=adapter)
    for _ in range(2):
        database.upgrade(engine)
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT strategy, lifted_items FROM rollout").one()
            assert tuple(found) == (strategy, lifted)
            connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
            assert (
                connection.exec_driver_sql("SELECT strategy FROM reporting.rollout_status").one()[0]
                == strategy
            )
        database.downgrade(engine, "0004")
        with engine.connect() as connection:
            connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
            connection.exec_driver_sql("SELECT adapter FROM reporting.rollout_status").one()


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("reembed", True), ("transform", False), ("sideways", True)]
)
def test_the_ledger_refuses_a_strategy_that_does_not_go_with_the_adapter(engine, strategy, adapter):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=adapter)
    database.upgrade(engine)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE rollout SET strategy = '{strategy}', lifted_items = 0")


def test_a_downgrade_is_refused_while_a_strategy_serves_that_the_release_before_cannot_read(engine):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=True)
    database.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rollout SET strategy = 'transform'")
    with pytest.raises(DBAPIError, match="roll it back"):
        database.downgrade(engine, "0004")
    assert database.current(engine) == database.HEAD


def test_a_downgrade_is_refused_while_a_plan_is_held_that_was_reranked(engine):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=False)
    database.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO plan_revision (rollout_id, no, file, measure, batches, items, committed_items, automatic, actor) "
            "VALUES (1, 1, 'rows.1.u32', 'flips', 1, 2, 0, false, 'me')"
        )
        assert connection.exec_driver_sql("SELECT plan_revision FROM reporting.rollout_status").one()[0] == 1
    with pytest.raises(DBAPIError, match="was re-ranked"):
        database.downgrade(engine, "0006")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rollout SET state = 'rolled_back'")
    database.downgrade(engine, "0006")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
        connection.exec_driver_sql("SELECT strategy FROM reporting.rollout_status").one()
        connection.exec_driver_sql("SELECT * FROM reporting.queue_status")
    database.upgrade(engine)


def test_a_curve_says_of_which_query_set_it_is_until_a_downgrade(engine):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=False)
    database.upgrade(engine)
    with engine.begin() as connection:
        for statement in (
            (
                "INSERT INTO query_set (gallery_id, name, relevance, source, modality) "
                "SELECT 1, q, 'label', 'x', 'text' FROM unnest(ARRAY['a', 'b']) AS q"
            ),
            (
                "INSERT INTO evaluation (rollout_id, query_set_id, seq, items, k, slice, point, both_right, negative_flips, "
                "positive_flips, both_wrong, n, previous_negative_flips, previous_positive_flips) "
                "SELECT 1, s, 1, 7, 1, 'all', true, s, 0, 0, 2 - s, 2, 0, 0 FROM generate_series(1, 2) s"
            ),
            (
                "INSERT INTO curve_point (rollout_id, metric, order_name, coverage, value) "
                "VALUES (1, 'recall_at_1', 'random', 0, 0.25)"
            ),
        ):
            connection.exec_driver_sql(statement)
        measured, simulated = [("a", 0.5), ("b", 1.0)], (None, 0.25)
        assert _curve(connection) == [*measured, simulated], (
            "without a certificate nobody knows of which it is"
        )
        connection.exec_driver_sql(
            "INSERT INTO certificate (query_model_id, gallery_model_id, query_set_id, verdict, reason, measured) "
            "VALUES (2, 1, 2, 'certified', 'x', '{}')"
        )
        connection.exec_driver_sql("UPDATE rollout SET certificate_id = 1")
        assert _curve(connection) == [measured[0], ("b", 0.25), measured[1]]
        found = read_view(connection, "refresh_curve", rollout=1, queryset="b")
        assert {row["against_order"] for row in found} == {"random", "measured"}
    database.downgrade(engine, "0009")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
        found = connection.exec_driver_sql("SELECT * FROM reporting.refresh_curve").mappings().all()
        assert len(found) == 3
        assert "queryset" not in found[0]
    database.upgrade(engine)


def test_a_downgrade_is_refused_while_a_canary_goes_on_and_the_log_keeps_its_places(engine):
    database.upgrade(engine, "0004")
    _rollout_of_before(engine, adapter=False)
    database.upgrade(engine)
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO traffic_change (rollout_id, revision, canary, shadow, actor) VALUES (1, 1, 10, 0.5, 'me')",
            "INSERT INTO log_event (gallery_id, seq, kind, rollout_id) VALUES (1, 1000, 'traffic', 1)",
            "UPDATE rollout SET state = 'deployed'",
        ):
            connection.exec_driver_sql(statement)
    with pytest.raises(DBAPIError, match="a canary goes on"):
        database.downgrade(engine, "0010")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO traffic_change (rollout_id, revision, canary, shadow, actor) VALUES (1, 2, 100, 0, 'me')"
        )
        [newest] = read_view(connection, "traffic", rollout=1, newest=True)
        assert newest["canary"] == 100
    database.downgrade(engine, "0010")
    with engine.connect() as connection:
        kind = connection.exec_driver_sql("SELECT kind FROM log_event WHERE seq = 1000").scalar_one()
    assert kind == "reset"
    database.upgrade(engine)


def _curve(connection) -> list[tuple]:
    found = connection.exec_driver_sql(
        "SELECT queryset, value FROM reporting.refresh_curve ORDER BY queryset, value"
    )
    return [tuple(row) for row in found]
