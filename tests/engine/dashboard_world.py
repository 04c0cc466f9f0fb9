"""A gallery half-way through a rollout of a model that takes two classes for each other, and a dashboard on it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import psycopg
import pytest

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, galleries, training
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.settings import Settings
from tests.engine import platform
from tests.engine.dashboard_server import browser_of
from workers.drain import drain

_numbers = itertools.count(1)
GATES = [
    {"measure": "negative_flip_rate", "limit": 0.0001, "minimum_n": 100, "effect": "alert"},
    {"name": "rehearsal", "measure": "negative_flip_rate", "limit": 0.9, "minimum_n": 10, "dry_run": True},
    {"name": "many", "measure": "recall_loss", "limit": 0.5, "minimum_n": 100_000, "effect": "alert"},
]
HOSTILE = "<script>alert(1)</script>"
TEXT = "<b>bold</b> & 'quoted' <img src=x onerror=alert(2)>"
MINE = "/rollouts/2"


@pytest.fixture(scope="module")
def world(servers, migrated_template, tmp_path_factory):
    """`pics` is refreshed to `bad`, 7 of 15 batches are committed and evaluated; `texts` has names that look like markup."""
    base, name = servers.database_url.rsplit("/", 1)[0], f"dashboard_{next(_numbers)}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    folder = tmp_path_factory.mktemp("dashboard")
    settings = Settings(
        database_url=f"{base}/{name}", broker_url=servers.broker_url.rsplit("/", 1)[0] + "/15",
        data_dir=folder / "data", lease_s=2.0, heartbeat_s=0.3, batch_size=16, gate=GATES, flip_ks=[1, 3],
    )  # fmt: skip
    with open_context(settings) as context:
        platform.embedded_gallery(context, folder)
        _import_bad(context, folder)
        row = advance.advance(context, platform.start(context, "bad").id)
        _some_batches(context, row.id, 7)
        evaluate_rollout(context, row.id, {})
        _make_texts(context, folder)
        with context.engine.begin() as connection:
            connection.exec_driver_sql(
                """UPDATE query
                   SET attributes = jsonb_build_object('tenant', CASE WHEN mod(no, 2) = 0 THEN 'acme' ELSE 'b&b' END)"""
            )
            flip_queries.insert_curve_points(
                connection,
                row.id,
                [("recall_at_1", "random", 0.0, 0.9), ("recall_at_1", "random", 1.0, 0.95)],
            )
        yield context
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _import_bad(context: Context, folder: Path) -> None:
    training.import_factory(
        context, "bad", "tests.engine.swapped:Swapped",
        {"encoder": str(folder / "old"), "pictures": str(folder / "pictures"), "pairs": [["class-03", "class-17"]]},
    )  # fmt: skip
    with context.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        for query_model, verdict in (("bad", "certified"), ("kin", "refused")):
            model_queries.insert_certificate(
                connection, adapter_id=None, verdict=verdict, reason="by hand", measured={"new_old": 0.25, "old_old": 0.5},
                query_model_id=model_queries.model_by_name(connection, query_model).id,
                gallery_model_id=model_queries.model_by_name(connection, "bad" if query_model == "kin" else "old").id,
                query_set_id=gallery_queries.query_set_by_name(connection, gallery.id, "asked").id,
            )  # fmt: skip


def _make_texts(context: Context, folder: Path) -> None:
    (folder / "texts.csv").write_text(f'key,text,label\n{HOSTILE},"{TEXT}",{HOSTILE}\nplain,words,a\n')
    galleries.create_gallery(context, "texts", str(folder / "texts.csv"))


def _some_batches(context: Context, rollout_id: int, count: int) -> None:
    stop, done = threading.Event(), []

    def committed(seq):
        done.append(seq)
        if len(done) >= count:
            stop.set()

    drain(context, rollout_id, owner="test", stop=stop, committed=committed)


@pytest.fixture(scope="module")
def client(world):
    with browser_of(world) as opened:
        yield opened


@pytest.fixture
def view(world):
    def rows(name, **filters):
        with world.engine.connect() as connection:
            return read_view(connection, name, limit=5000, **filters)

    return rows
