"""The HTTP interface where something is wrong: no ledger, galleries that cannot be loaded, bodies that are too large."""

from __future__ import annotations

import base64
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sqlalchemy.engine import make_url

from orchestrator.api.query import MAX_TEXT_BYTES
from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.service import advance, items
from orchestrator.service.finish import finalize
from tests.engine import platform
from tests.engine.api_server import client_of, until
from tests.engine.test_supersede import work_some
from tests.faults.proxy import HalfOpen, Pass, Proxy, Refuse


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def proxied(world):
    """A second context on the same ledger, through a proxy; and the proxy."""
    url = make_url(world.settings.database_url)
    with Proxy((url.host, url.port)) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with open_context(world.settings.model_copy(update={"database_url": through})) as opened:
            yield opened, proxy


def search(client, key="class-04/0.png", **asked):
    return client.post("/search/pics", json={"key": key, "k": 3, **asked})


def away(proxy):
    proxy.set(Refuse())
    proxy.reset_all()


def test_searches_go_on_while_the_ledger_is_away_and_the_log_is_followed_when_it_is_back(world, proxied):
    context, proxy = proxied
    with client_of(context) as client:
        before = search(client).json()
        away(proxy)
        for what in ("database:", "replica pics:"):
            until(
                lambda what=what: any(
                    reason.startswith(what) for reason in client.get("/readyz").json()["reasons"]
                )
            )
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert search(client).json() == before
        assert search(client, "nowhere.png").status_code == 404
        for path in ("/rollouts", "/rollouts/1", "/galleries"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unreachable")
        until(lambda: "hotrefresh_items{" not in client.get("/metrics").text)  # absent, not zero
        assert "hotrefresh_search_duration_seconds_count" in client.get("/metrics").text
        row = platform.start(world)
        platform.work(world, row.id)
        assert search(client).json()["model"] == "old"
        proxy.set(Pass())
        until(lambda: search(client).json()["model"] == "kin")
        until(lambda: search(client).json()["coverage_ratio"] == 1.0)
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        until(lambda: "hotrefresh_items{" in client.get("/metrics").text)


def test_a_ledger_that_says_nothing_does_not_hold_searches_up(proxied):
    context, proxy = proxied
    with client_of(context) as client:
        proxy.set(HalfOpen())
        for _ in range(50):
            assert search(client).status_code == 200
        assert client.get("/livez").status_code == 200
        proxy.set(Pass())
        proxy.reset_all()


def test_a_gallery_that_cannot_be_loaded_is_named_and_the_process_not_ready(world, tmp_path):
    model = next((tmp_path / "old").glob("*.safetensors"))
    content = model.read_bytes()
    for copy in [model, *world.settings.data_dir.rglob("*.safetensors")]:
        copy.chmod(0o600)
        copy.write_bytes(b"tampered with" + copy.read_bytes()[13:])
    world._encoders.clear()
    with client_of(world, ready=False) as client:
        until(lambda: "replica pics" in str(client.get("/readyz").json()["reasons"]))
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert search(client).status_code == 500
        for copy in [model, *world.settings.data_dir.rglob("*.safetensors")]:
            if copy.stat().st_size == len(content):
                copy.write_bytes(content)


def test_a_hundred_searches_at_once_while_batches_are_committed_are_all_answered(world):
    with client_of(world) as client:
        row = advance.advance(world, platform.start(world).id)
        over = threading.Event()
        answers = []

        def ask(number):
            while not over.is_set():
                answer = search(client, f"class-{number % platform.CLASSES:02d}/0.png")
                answers.append((answer.status_code, answer.json()))

        with ThreadPoolExecutor(100) as askers:
            asked = [askers.submit(ask, number) for number in range(100)]
            platform.work(world, row.id)
            finalize(world, row.id)
            until(lambda: len(answers) > 300)
            over.set()
            for each in asked:
                each.result()
        assert {status for status, _ in answers} == {200}
        assert {len(answer["hits"]) for _, answer in answers} == {3}
        assert {hit["model"] for _, answer in answers for hit in answer["hits"]} <= {"old", "kin"}


def test_items_that_come_change_and_go_are_named_as_they_are_now(world, tmp_path):
    rng = np.random.default_rng(5)
    folder = tmp_path / "more" / "class-99"
    folder.mkdir(parents=True)
    pattern = rng.integers(0, 255, (platform.EDGE, platform.EDGE)).astype(np.uint8)
    Image.fromarray(pattern).save(folder / "new.png")
    with client_of(world) as client:
        assert search(client, "class-99/new.png").status_code == 404
        items.add_items(world, "pics", str(tmp_path / "more"))
        work_late(world)
        until(lambda: search(client, "class-99/new.png").status_code == 200)
        assert search(client, "class-99/new.png").json()["hits"][0]["label"] == "class-99"
        items.delete_items(world, "pics", ["class-99/new.png"])
        until(lambda: search(client, "class-99/new.png").status_code == 404)
        keys = [hit["key"] for hit in search(client, k=1000).json()["hits"]]
        assert "class-99/new.png" not in keys
        assert len(keys) == platform.CLASSES * platform.PER_CLASS


def work_late(context):
    from orchestrator.ledger.queries import rollouts as rollout_queries
    from workers.drain import drain

    with context.engine.connect() as connection:
        newest = rollout_queries.list_rollouts(connection, None)[0]
    drain(context, newest.id, owner="test")


def test_a_long_body_is_for_pictures_and_a_picture_has_its_limits(world, monkeypatch):
    with client_of(world) as client:
        padded = b'{"key": "class-04/0.png", "k": 1' + b" " * MAX_TEXT_BYTES + b"}"
        assert client.post("/search/pics", content=padded).status_code == 413
        rng = np.random.default_rng(0)
        noise = Image.fromarray(rng.integers(0, 255, (400, 400)).astype(np.uint8))
        large = encoded(noise)
        assert len(large) > MAX_TEXT_BYTES
        assert client.post("/search/pics", json={"image": large, "k": 1}).status_code == 200
        monkeypatch.setattr("models.datasets.folder.MAX_PIXELS", 399 * 400)
        refused = client.post("/search/pics", json={"image": large})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        assert "400 × 400" in refused.json()["error"]["message"]
        assert "/tmp" not in refused.text
        monkeypatch.setattr("models.datasets.folder.MAX_BYTES", 1000)
        assert client.post("/search/pics", json={"image": large}).status_code == 413


def encoded(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_statement_that_takes_too_long_is_ended_and_said_so(world):
    from orchestrator.errors import UnreachableError
    from orchestrator.ledger.database import limit_statements, transaction

    limit_statements(world.engine, 0.2)
    with (
        pytest.raises(UnreachableError, match="took too long"),
        transaction(world.engine) as connection,
    ):
        connection.exec_driver_sql("SELECT pg_sleep(5)")


def test_a_replica_that_is_held_back_says_how_old_the_oldest_entry_is_and_readyz_what_the_settings_ask(world):
    """Somebody holds a table that applying a batch reads, as a change of the schema does: the log goes on without the replica."""
    row = advance.advance(world, platform.start(world).id)
    patient, strict = (
        Context(
            **{
                **vars(world),
                "settings": world.settings.model_copy(
                    update={"replica_lag_s": 0.5, "replica_lag_unready": unready}
                ),
            }
        )
        for unready in (False, True)
    )

    def committed():
        """How many batches of this rollout are, and the age of the oldest one in seconds, by the ledger's clock."""
        with world.engine.connect() as connection:
            return connection.exec_driver_sql(
                "SELECT count(seq), extract(epoch FROM clock_timestamp() - min(committed_at))::float8 FROM batch "
                f"WHERE rollout_id = {row.id}"
            ).one()

    def shown(client):
        """Lag in batches and in seconds, as scraped."""
        found = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
        return [
            float(found[f'hotrefresh_replica_lag_{what}{{gallery="pics"}}'])
            for what in ("batches", "seconds")
        ]

    with client_of(patient) as client, client_of(strict) as elsewhere:
        before = search(client).json()
        with world.engine.connect() as held:
            held.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            held.exec_driver_sql("LOCK TABLE planned_content IN ACCESS EXCLUSIVE MODE")
            work_some(world, row.id, 1)
            until(lambda: client.get("/readyz").json()["status"] == "degraded")
            first = committed()[0]
            work_some(world, row.id, 1)
            count, oldest = committed()
            assert count > first
            until(lambda: shown(client)[0] == count)  # what is scraped is kept for a moment
            assert 0.5 < oldest <= shown(client)[1] <= committed()[1], "of the first, not of the last"
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            [reason] = ready.json()["reasons"]
            assert re.fullmatch(r"replica pics lags: .* waited for \d+ s \(replica_lag_s is 0\.5\)\.", reason)
            ready = elsewhere.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
            assert search(client).json() == before, "answered from where it stands"
        for each in (client, elsewhere):
            until(lambda each=each: each.get("/readyz").json()["status"] == "ready")
            until(lambda each=each: shown(each) == [0, 0])
        assert search(client).json()["log_sequence"] == before["log_sequence"] + count
