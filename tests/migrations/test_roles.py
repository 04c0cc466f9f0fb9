"""Database roles with real logins: what the workers' role and the dashboards' role may do, and what they are refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from orchestrator.bootstrap import open_context
from orchestrator.errors import ConflictError
from orchestrator.ledger import database
from orchestrator.ledger.queries.reporting import VIEWS, read_view
from tests.engine import platform

PASSWORD = secrets.token_hex(8)


def as_login(url: str, name: str) -> str:
    """The same database, as somebody else."""
    return f"postgresql://{name}:{PASSWORD}@" + url.split("@", 1)[1]


@pytest.fixture
def logins(settings) -> Iterator[dict[str, str]]:
    """URLs of this test's ledger: its owner, a login that workers use, one that dashboards use."""
    app = f"app_{secrets.token_hex(4)}"
    with psycopg.connect(settings.database_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {app} LOGIN PASSWORD '{PASSWORD}' IN ROLE hotrefresh_app")
        # As SECURITY.md says: the role itself logs in, because a member does not inherit its time limit.
        owner.execute(f"ALTER ROLE hotrefresh_dashboard LOGIN PASSWORD '{PASSWORD}'")
        url = settings.database_url
        yield {"owner": url, "app": as_login(url, app), "dashboard": as_login(url, "hotrefresh_dashboard")}
        owner.execute("ALTER ROLE hotrefresh_dashboard NOLOGIN PASSWORD NULL")
        owner.execute(f"DROP ROLE {app}")


@pytest.fixture
def app(logins) -> Iterator[psycopg.Connection]:
    with psycopg.connect(logins["app"], autocommit=True, options="-c search_path=hotrefresh") as connection:
        yield connection


@pytest.fixture
def dashboard(logins) -> Iterator[psycopg.Connection]:
    with psycopg.connect(logins["dashboard"], autocommit=True) as connection:
        yield connection


def test_the_app_role_runs_whole_rollouts_from_gallery_to_rollback(settings, logins, tmp_path):
    from orchestrator.service import finish
    from orchestrator.service.invariants import check_invariants

    with open_context(settings.model_copy(update={"database_url": logins["app"]})) as context:
        platform.embedded_gallery(context, tmp_path)
        row = platform.work(context, platform.start(context).id)
        assert row.state == "finalizable"
        assert finish.finalize(context, row.id).state == "finalized"
        with context.engine.connect() as connection:
            for view in VIEWS:
                read_view(connection, view)
            actions = [entry["action"] for entry in read_view(connection, "audit")]
            assert "gallery.created" in actions
        assert [found for found in check_invariants(context) if not found.ok] == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE hotrefresh.mine (a int)",
        "CREATE TABLE reporting.mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "CREATE SCHEMA mine",
        "ALTER TABLE batch ADD COLUMN a int",
        "ALTER TABLE audit DISABLE TRIGGER ALL",
        "DROP TABLE batch",
        "DROP VIEW reporting.audit",
        "CREATE INDEX ON batch (seq)",
        "CREATE OR REPLACE FUNCTION rank_of(p_rollout bigint, p_row bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
        "TRUNCATE batch",
        "DELETE FROM audit",
        "UPDATE audit SET actor = 'somebody else'",
        "TRUNCATE audit",
        "INSERT INTO audit (at, actor, action, target) VALUES ('2000-01-01', 'me', 'x', 'y')",
        "INSERT INTO audit (id, actor, action, target) OVERRIDING SYSTEM VALUE VALUES (1, 'me', 'x', 'y')",
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM alembic_version",
        "CREATE ROLE mine",
        "ALTER ROLE hotrefresh_dashboard SET statement_timeout = 0",
        "ALTER ROLE hotrefresh_app CREATEDB",
        "GRANT hotrefresh_app TO hotrefresh_dashboard",
        "SET ROLE hotrefresh",
        "SELECT * FROM pg_authid",
        "SELECT pg_read_file('/etc/hostname')",
        "COPY batch TO '/tmp/hotrefresh-roles-test'",
        "COPY batch TO PROGRAM 'cat'",
    ],
)
def test_the_app_role_is_refused(app, statement):
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(statement)


def test_the_app_role_may_pass_nothing_on(app):
    app.execute(
        "GRANT SELECT ON batch TO hotrefresh_dashboard"
    )  # PostgreSQL only warns that nothing was granted
    answer = app.execute("SELECT has_table_privilege('hotrefresh_dashboard', 'hotrefresh.batch', 'SELECT')")
    assert answer.fetchone() == (False,)


def test_the_app_role_may_use_every_table_and_view_there_is_whichever_migration_made_it(logins):
    """Over the catalogue, so a table of a later migration cannot be forgotten."""
    with psycopg.connect(logins["owner"]) as owner:
        tables = owner.execute(
            "SELECT n.nspname, c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname IN ('hotrefresh', 'reporting') AND c.relkind IN ('r', 'p', 'v')"
        ).fetchall()
        assert len(tables) > 30
        for schema, name, oid in tables:
            allowed = {
                privilege
                for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES")
                if owner.execute(
                    "SELECT has_table_privilege('hotrefresh_app', %s::oid, %s)", (oid, privilege)
                ).fetchone()[0]
            }
            read_only = schema == "reporting" or name in ("audit", "alembic_version")
            assert allowed == ({"SELECT"} if read_only else {"SELECT", "INSERT", "UPDATE", "DELETE"}), name


def test_a_table_that_the_owner_makes_later_is_usable_at_once(logins, app):
    with psycopg.connect(logins["owner"], autocommit=True) as owner:
        owner.execute("CREATE TABLE hotrefresh.later (id bigint GENERATED ALWAYS AS IDENTITY, note text)")
        owner.execute("CREATE VIEW reporting.later AS SELECT note FROM hotrefresh.later")
    app.execute("INSERT INTO later (note) VALUES ('x')")
    assert app.execute("SELECT note FROM reporting.later").fetchall() == [("x",)]


def test_the_dashboard_login_reads_every_view_within_two_seconds_and_nothing_else(dashboard):
    views = dashboard.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'reporting'"
    ).fetchall()
    assert {name for (name,) in views} == set(VIEWS)
    for view in VIEWS:
        dashboard.execute(f"SELECT * FROM reporting.{view}")
    assert dashboard.execute("SHOW statement_timeout").fetchone() == ("2s",)
    with pytest.raises(errors.QueryCanceled):
        dashboard.execute("SELECT pg_sleep(4)")


def test_the_dashboard_login_sees_no_table_and_writes_nothing(dashboard, logins):
    with psycopg.connect(logins["owner"]) as owner:
        tables = [
            name
            for (name,) in owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'hotrefresh'")
        ]
    assert len(tables) > 20
    for table in tables:
        with pytest.raises(errors.InsufficientPrivilege):
            dashboard.execute(f"SELECT * FROM hotrefresh.{table}")
    for statement in (
        "DELETE FROM reporting.audit",
        "INSERT INTO reporting.audit (actor, action, target) VALUES ('me', 'x', 'y')",
        "UPDATE reporting.worker_health SET host = 'x'",
        "CREATE VIEW reporting.mine AS SELECT 1",
        "CREATE TABLE public.mine (a int)",
        "SELECT hotrefresh.rank_of(1, 1)",
    ):
        with pytest.raises((errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)):
            dashboard.execute(statement)


def test_a_login_without_a_role_may_call_no_function_that_reads_with_the_owners_rights(logins):
    with psycopg.connect(logins["owner"], autocommit=True) as owner:
        functions = owner.execute(
            "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
            "WHERE n.nspname = 'hotrefresh' AND p.prosecdef"
        ).fetchall()
        assert len(functions) >= 2
        owner.execute("CREATE ROLE passer_by NOLOGIN")
        try:
            for (function,) in functions:
                answer = owner.execute(
                    "SELECT has_function_privilege('passer_by', %s, 'EXECUTE')", (function,)
                )
                assert answer.fetchone() == (False,), function
        finally:
            owner.execute("DROP ROLE passer_by")


def test_the_app_role_on_an_empty_database_is_told_to_upgrade_as_the_owner(settings, logins, empty_database):
    url = as_login(empty_database, logins["app"].split("://")[1].split(":")[0])
    with (
        pytest.raises(ConflictError, match="hotrefresh db upgrade"),
        open_context(settings.model_copy(update={"database_url": url})),
    ):
        pass


def test_the_step_can_be_taken_back_and_leaves_the_role_nothing(empty_database):
    engine = database.open_engine(empty_database, pooled=False)
    database.upgrade(engine)
    database.downgrade(engine, "0003")
    with engine.connect() as connection:
        left = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname IN ('hotrefresh', 'reporting') AND c.relkind IN ('r', 'v') "
            "AND (has_table_privilege('hotrefresh_app', c.oid, 'SELECT') "
            "OR has_any_column_privilege('hotrefresh_app', c.oid, 'INSERT'))"
        ).scalar_one()
    assert left == 0
    database.upgrade(engine)
    assert database.current(engine) == database.HEAD
    engine.dispose()
