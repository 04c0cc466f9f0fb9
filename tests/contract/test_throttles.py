"""Every registered probe against real parts: HTTP on loopback, PostgreSQL, Prometheus's own text."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from orchestrator.errors import UsageError
from orchestrator.throttles import KINDS, ProbeError, ProbeRefused, Surroundings, parse_throttles, resolved
from orchestrator.throttles.monitor import DEADLINE_S
from tests.contract import throttle_parts
from tests.contract.throttle_parts import HOURS, HTTP, NOON, SQL, probe, read, serving

endpoint, engine, nowhere = throttle_parts.endpoint, throttle_parts.engine, throttle_parts.nowhere


# -- every kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_example_that_parses_and_resolves_to_itself(kind):
    once = resolved([KINDS[kind].example])
    assert once[0].items() >= KINDS[kind].example.items()
    assert once[0]["every_s"] == 5.0
    assert once[0]["patience_s"] == 30.0
    assert resolved(once) == once


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_a_key_that_it_does_not_have(kind):
    with pytest.raises(UsageError, match=rf"throttle 1 \({kind}\): 'colour' is no key of this kind"):
        parse_throttles([{**KINDS[kind].example, "colour": "red"}])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hours"])
def test_every_kind_with_a_limit_wants_it_as_a_positive_number(kind):
    example = dict(KINDS[kind].example)
    for limit in ("10", True, 0, -1, float("nan"), float("inf"), None):
        with pytest.raises(UsageError, match="limit is"):
            parse_throttles([{**example, "limit": limit}])
    del example["limit"]
    with pytest.raises(UsageError, match="limit is missing; write limit = a number"):
        parse_throttles([example])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_a_number_nothing_or_a_probe_error_in_time(kind, nowhere):
    """Against dead parts: never another exception, never longer than the monitor waits."""
    table = dict(KINDS[kind].example)
    if "url" in table:
        table["url"] = "http://127.0.0.1:9/"
    begun = time.monotonic()
    try:
        value = read(table, nowhere)
    except ProbeError:
        value = None
    assert value is None or isinstance(value, float)
    assert time.monotonic() - begun < DEADLINE_S + 10 * (kind == "gpu_memory")  # torch is imported there


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "throttle 1: kind is missing"),
        ({"kind": "moon"}, "kind is 'moon'; write one of serving_p95, replica_lag"),
        ("http", "throttle 1 is no table"),
        (HTTP | {"url": "ftp://h/x"}, "url is no http or https URL"),
        (HTTP | {"url": "http://"}, "url is no http or https URL"),
        (HTTP | {"url": "http://h:x/"}, "url is no http or https URL"),
        (HTTP | {"url": "http://user:s3cr3t@h/"}, "url holds a user or password"),
        (HTTP | {"url": 7}, "url is 7; write a text"),
        (HTTP | {"pointer": "a/b"}, "pointer is 'a/b'"),
        (HTTP | {"resume_below": 6}, "resume_below is 6; write a number above 0 and at most 5"),
        (HTTP | {"every_s": 0}, "every_s is 0"),
        (HTTP | {"patience_s": "long"}, "patience_s is 'long'; write a number"),
        (HTTP | {"name": "Not Good"}, "name is 'Not Good'"),
        (SQL | {"query": "DELETE FROM batch"}, "query is not a single SELECT"),
        (SQL | {"query": "SELECT 1; SELECT 2"}, "query is not a single SELECT"),
        (SQL | {"query": "SELECT 1 INTO t"}, "query is not a single SELECT"),
        (SQL | {"query": "WITH x AS (DELETE FROM batch RETURNING 1) SELECT 1"}, "not a single SELECT"),
        (SQL | {"query": "-- SELECT 1"}, "query is not a single SELECT"),
        (SQL | {"query": "  "}, "query is '  '; write a text"),
        (SQL | {"database_url_env": "postgresql://u:s3cr3t@h/d"}, "is no name of an environment variable"),
        (HOURS | {"allow": "22:00-06:00"}, "allow is '22:00-06:00'; write a list"),
        (HOURS | {"allow": []}, r"allow is \[\]; write a list"),
        (HOURS | {"allow": ["25:00-06:00"]}, "allow holds '25:00-06:00'"),
        (HOURS | {"allow": ["06:00-24:30"]}, "allow holds '06:00-24:30'"),
        (HOURS | {"allow": ["06:00-06:00"]}, "allow holds '06:00-06:00'"),
        (HOURS | {"tz": "Mars/Olympus"}, "tz is 'Mars/Olympus'"),
        (HOURS | {"limit": 1}, "'limit' is no key of this kind"),
        ({"kind": "replica_lag", "limit": 1, "of": "mysql"}, "of is 'mysql'; write one of postgres, search"),
        ({"kind": "replica_lag", "limit": 1, "of": "postgres", "replicas": 1.5}, "replicas is 1.5"),
        ({"kind": "gpu_memory", "limit": 90}, "limit is 90; write a number above 0 and at most 1"),
    ],
)
def test_each_mistake_is_one_clear_sentence_without_secrets(table, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_throttles([table])
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_of_one_kind_need_names_and_the_list_must_be_one():
    with pytest.raises(UsageError, match="two throttles are named 'http'"):
        parse_throttles([HTTP, HTTP])
    assert [throttle.name for throttle in parse_throttles([HTTP, HTTP | {"name": "other"}])] == [
        "http",
        "other",
    ]
    with pytest.raises(UsageError, match="not a list of tables"):
        parse_throttles({"kind": "http"})


# -- http ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointer", "value"),
    [
        (b" 3.5\n", None, 3.5),
        (b'{"queue": [{"a/b": 7}]}', "/queue/0/a~1b", 7.0),
        (b'{"": "8"}', "/", 8.0),
    ],
)
def test_http_reads_a_number_from_the_body_or_at_a_pointer(endpoint, nowhere, body, pointer, value):
    endpoint.body = body
    table = HTTP | {"url": endpoint.url} | ({"pointer": pointer} if pointer else {})
    assert read(table, nowhere) == value


@pytest.mark.parametrize(
    ("body", "pointer"),
    [(b"many", None), (b"", None), (b'{"a": true}', "/a"), (b'{"a": 1}', "/b"), (b"[1]", "/x"), (b"{", "/a"), (b"\xff", None)],
)  # fmt: skip
def test_http_says_what_is_no_number(endpoint, nowhere, body, pointer):
    endpoint.body = body
    with pytest.raises(ProbeError):
        read(HTTP | {"url": endpoint.url} | ({"pointer": pointer} if pointer else {}), nowhere)


@pytest.mark.parametrize("status", [201, 204, 404, 503])
def test_http_takes_every_other_status_for_a_refusal(endpoint, nowhere, status):
    endpoint.status = status
    with pytest.raises(ProbeRefused) as caught:
        read(HTTP | {"url": endpoint.url}, nowhere)
    assert caught.value.status == status


def test_http_does_not_follow_to_another_host_nor_read_without_bound(endpoint, nowhere):
    table = HTTP | {"url": endpoint.url}
    with serving() as other:
        endpoint.status, endpoint.headers = 302, {"Location": other.url}
        with pytest.raises(ProbeError, match="redirects to another host"):
            read(table, nowhere)
        assert other.asked == 0
    endpoint.status, endpoint.headers, endpoint.body = 200, {}, b"1" * 1_000_001
    with pytest.raises(ProbeError, match="more than 1000000 bytes"):
        read(table, nowhere)


@pytest.mark.parametrize("slow", [{"wait_s": 30.0}, {"drip_s": 0.4, "body": b"1" * 100}])
def test_http_gives_up_on_a_slow_answer_whole_or_in_drops(endpoint, nowhere, slow):
    for name, value in slow.items():
        setattr(endpoint, name, value)
    begun = time.monotonic()
    with pytest.raises(ProbeError):
        read(HTTP | {"url": endpoint.url}, nowhere)
    assert 1.5 < time.monotonic() - begun < 3.5


# -- Prometheus ---------------------------------------------------------------------------------------------------


@pytest.fixture
def metrics(endpoint):
    registry = CollectorRegistry()
    endpoint.searches = Histogram(
        "hotrefresh_search_duration_seconds",
        "x",
        ["shard"],
        buckets=(0.01, 0.02, 0.04, 0.08),
        registry=registry,
    )
    endpoint.lag = Gauge("hotrefresh_replica_lag_batches", "x", ["replica"], registry=registry)

    def publish():
        endpoint.body = generate_latest(registry)

    endpoint.publish = publish
    return endpoint


def test_p95_is_that_of_the_interval_over_all_shards(metrics, nowhere):
    found = probe(kind="serving_p95", limit=0.05, url=metrics.url)
    here = Surroundings(nowhere, NOON)
    for _ in range(1000):  # long ago, slow: must not count
        metrics.searches.labels("a").observe(0.07)
    metrics.publish()
    assert found.read(here) is None
    assert found.read(here) == 0.0  # nobody searched
    for shard, seconds, times in (("a", 0.005, 90), ("b", 0.03, 10)):
        for _ in range(times):
            metrics.searches.labels(shard).observe(seconds)
    metrics.publish()
    # 95 of 100: 90 are in the first bucket, the 5 of 10 wanted from (0.02, 0.04] end at its middle.
    assert found.read(here) == pytest.approx(0.03)
    for _ in range(10):
        metrics.searches.labels("a").observe(9.0)
    metrics.publish()
    assert found.read(here) == 0.08  # beyond every bucket: at least the highest bound, above the limit


def test_p95_survives_a_restart_of_the_replica(metrics, nowhere):
    found = probe(kind="serving_p95", limit=0.05, url=metrics.url)
    here = Surroundings(nowhere, NOON)
    for _ in range(100):
        metrics.searches.labels("a").observe(0.07)
    metrics.publish()
    found.read(here)
    metrics.searches.clear()
    for _ in range(10):
        metrics.searches.labels("a").observe(0.03)
    metrics.publish()
    assert 0.02 < found.read(here) <= 0.04


def test_p95_refuses_a_limit_that_its_buckets_cannot_show(metrics, nowhere):
    metrics.searches.labels("a").observe(0.01)
    metrics.publish()
    with pytest.raises(ProbeError, match="lower the limit or add buckets"):
        read({"kind": "serving_p95", "limit": 0.08, "url": metrics.url}, nowhere)


def test_search_lag_is_the_slowest_replicas(metrics, nowhere):
    metrics.lag.labels("a").set(3)
    metrics.lag.labels("b").set(11)
    metrics.publish()
    assert read({"kind": "replica_lag", "of": "search", "limit": 5, "url": metrics.url}, nowhere) == 11


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"up 1\n", b"hotrefresh_replica_lag_batches x\n"])
def test_metrics_without_the_number_are_no_answer(endpoint, nowhere, body):
    endpoint.body = body
    for table in ({"kind": "serving_p95"}, {"kind": "replica_lag", "of": "search"}):
        with pytest.raises(ProbeError):
            read(table | {"limit": 1, "url": endpoint.url}, nowhere)


def test_a_metrics_page_with_a_fault_is_no_answer_rather_than_a_refusal(endpoint, nowhere):
    endpoint.status = 500
    with pytest.raises(ProbeError, match="status 500") as caught:
        read({"kind": "serving_p95", "limit": 1, "url": endpoint.url}, nowhere)
    assert not isinstance(caught.value, ProbeRefused)


# -- sql ----------------------------------------------------------------------------------------------------------


def test_sql_reads_one_number_from_the_ledger_or_a_named_database(engine, nowhere, settings):
    assert read(SQL | {"query": "SELECT count(*) + 0.5 FROM batch;"}, engine) == 0.5
    assert read(SQL | {"query": "SELECT length(';''DELETE') -- ; comment"}, engine) == 8
    table = SQL | {"database_url_env": "OTHER", "query": "WITH x AS (SELECT 41 AS n) SELECT n + 1 FROM x"}
    assert read(table, nowhere, OTHER=settings.database_url) == 42
    for environment in ({}, {"OTHER": "mysql://u:s3cr3t@h/d"}, {"OTHER": "s3cr3t"}):
        with pytest.raises(ProbeError, match="OTHER is not set to a PostgreSQL URL") as caught:
            read(table, nowhere, **environment)
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "query", ["SELECT 1, 2", "SELECT 1 WHERE false", "SELECT generate_series(1, 3)", "SELECT NULL::int", "SELECT 'x'",
              "SELECT nothing FROM nowhere", "SELECT nextval('audit_id_seq')"]
)  # fmt: skip
def test_sql_that_gives_no_single_number_or_writes_is_no_answer(engine, query):
    with pytest.raises(ProbeError):
        read(SQL | {"query": query}, engine)


def test_sql_nan_reaches_the_decision_as_nan(engine):
    assert read(SQL | {"query": "SELECT 'NaN'::float8"}, engine) != 0
    assert str(read(SQL | {"query": "SELECT 'NaN'::float8"}, engine)) == "nan"


def test_sql_is_stopped_by_the_server_after_two_seconds(engine):
    begun = time.monotonic()
    with pytest.raises(ProbeError, match="statement timeout"):
        read(SQL | {"query": "SELECT 1 FROM pg_sleep(30)"}, engine)
    assert 1.5 < time.monotonic() - begun < 4


def test_a_second_statement_is_refused_by_the_protocol_as_well(engine, settings):
    """The check at submit is the first line; this is the second, were the first deceived."""
    import psycopg

    from orchestrator.ledger.queries.measurements import read_scalar

    with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
        read_scalar(settings.database_url, "COMMIT; CREATE TABLE public.planted (n int); SELECT 1", 2.0)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        read_scalar(settings.database_url, "CREATE TABLE public.planted (n int)", 2.0)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT to_regclass('public.planted')").scalar_one() is None


# -- hours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "wait_s"),
    [
        ("2025-06-02T21:59:30", 30),
        ("2025-06-02T22:00:00", 0),
        ("2025-06-03T05:59:59", 0),
        ("2025-06-03T06:00:00", 16 * 3600),
        ("2025-03-30T12:00:00", 10 * 3600),
    ],
)
def test_hours_open_and_close_by_the_wall_clock(nowhere, at, wait_s):
    moment = datetime.fromisoformat(at).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    assert read(HOURS, nowhere, now=moment) == wait_s


def test_hours_in_the_night_when_the_clocks_change(nowhere):
    """02:00–03:00 does not exist on 30 March 2025 in Berlin, and comes twice on 26 October."""
    skipped = HOURS | {"allow": ["02:30-04:00"]}
    spring = datetime(2025, 3, 30, 0, 59, tzinfo=UTC)  # 01:59, the last minute of winter
    assert read(skipped, nowhere, now=spring) == 60  # at 03:00 summer time, as 02:30 never comes
    twice = HOURS | {"allow": ["02:00-02:30"]}
    autumn = datetime(2025, 10, 26, 0, 0, tzinfo=UTC)  # 02:00, the first time
    inside = [read(twice, nowhere, now=autumn + timedelta(minutes=m)) == 0 for m in range(0, 120, 10)]
    assert inside == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3
    # A night of nine hours: from 06:00 winter time on 25 October 22:00 is 16 h away, in summer time's last evening.
    assert read(HOURS, nowhere, now=datetime(2025, 10, 25, 4, 0, tzinfo=UTC)) == 16 * 3600


def test_hours_with_several_windows_waits_for_the_next(nowhere):
    table = {"kind": "hours", "allow": ["12:00-13:00", "20:00-24:00"], "tz": "UTC"}
    assert read(table, nowhere, now=NOON.replace(hour=13)) == 7 * 3600
    assert read(table, nowhere, now=NOON.replace(hour=23, minute=59)) == 0
    assert read(table, nowhere, now=NOON.replace(hour=0)) == 12 * 3600


# -- gpu ----------------------------------------------------------------------------------------------------------


def test_gpu_memory_is_a_fraction_with_cuda_and_does_not_apply_without(nowhere):
    import torch

    found = read({"kind": "gpu_memory", "limit": 0.9}, nowhere)
    assert found is None if not torch.cuda.is_available() else 0 < found <= 1
