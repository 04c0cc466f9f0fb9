"""How often items are retrieved: logs that are imported, searches that are counted, and the order that follows them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from cli.main import main
from orchestrator.core.orders import order_scores
from orchestrator.core.plan import order_rows
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, demand, plan_preview
from orchestrator.service.scoring import choose_prototypes, read_inputs
from orchestrator.service.start import StartRequest
from orchestrator.serving.matrix import load_matrix, plan_rows
from tests.engine import platform
from tests.engine.api_server import client_of, until


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def gallery_of(context):
    with context.engine.connect() as connection:
        return gallery_queries.gallery_by_name(connection, "pics")


def counts(context, n=240):
    with context.engine.connect() as connection:
        return demand.read_counts(connection, gallery_of(context).id, n)


def add(context, given):
    with context.engine.begin() as connection:
        demand.add_counts(connection, gallery_of(context).id, given)


def log_file(folder, text, name="log.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_lines_of_a_log_add_up_to_what_was_counted_before(world, tmp_path):
    lines = (
        "item,count\nclass-00/0.png,3\nclass-00/1.png,\nclass-00/0.png,2\nnowhere.png,9\nclass-00/2.png,0\n"
    )
    done = demand.import_demand(world, "pics", log_file(tmp_path, lines))
    assert (done.items, done.retrievals, done.unknown) == (2, 6, 2)
    done = demand.import_demand(
        world, "pics", log_file(tmp_path, "who,item\na,class-00/1.png\nb,class-00/1.png\n")
    )
    assert done.retrievals == 2
    shown = demand.show_demand(world, "pics")
    assert (shown.retrievals, shown.items) == (8, 2)
    assert [(each["key"], each["count"]) for each in shown.most_retrieved] == [
        ("class-00/0.png", 5),
        ("class-00/1.png", 3),
    ]
    assert shown.most_retrieved[0]["share"] == 5 / 8
    with world.engine.connect() as connection:
        told = read_view(connection, "audit", action="demand.imported")
    assert [each["after"] for each in told] == [{"items": 2, "retrievals": 6}, {"items": 1, "retrievals": 2}]


def test_a_parquet_log_is_read_like_a_csv(world, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.table({"item": ["class-01/0.png", "class-01/1.png"], "count": [7, 1]})
    parquet.write_table(table, tmp_path / "log.parquet")
    assert demand.import_demand(world, "pics", tmp_path / "log.parquet").retrievals == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,count\nclass-00/0.png,3\n", "needs the column item; it has key, count"),
        ("item,count\nclass-00/0.png,many\n", "line 1: count is 'many'"),
        ("item,count\nclass-00/1.png,1\nclass-00/0.png,-1\n", "line 2: count is '-1'"),
        ("item,count\nnowhere.png,3\n", "names no item of gallery 'pics'"),
        ("item\n", "names no item of gallery 'pics'"),
    ],
)
def test_a_log_that_makes_no_sense_is_refused_and_nothing_is_counted(world, tmp_path, text, says):
    with pytest.raises(UsageError, match=says):
        demand.import_demand(world, "pics", log_file(tmp_path, text))
    assert demand.show_demand(world, "pics").retrievals == 0


def test_counts_lie_in_chunks_whatever_rows_come_first(world, monkeypatch):
    monkeypatch.setattr(demand, "CHUNK", 50)
    rng = np.random.default_rng(0)
    expected = np.zeros(240, np.int64)
    for _ in range(6):
        given = {int(row): int(rng.integers(1, 9)) for row in rng.choice(240, 30, replace=False)}
        add(world, given)
        expected[list(given)] += list(given.values())
        np.testing.assert_array_equal(counts(world), expected)
    np.testing.assert_array_equal(counts(world, 77), expected[:77])
    with world.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT count(*) FROM demand_chunk").scalar_one()
    assert rows == 5
    assert demand.show_demand(world, "pics").retrievals == expected.sum()


def test_who_adds_at_once_takes_turns(world):
    threads = [
        threading.Thread(target=lambda: [add(world, {1: 1, 200: 2}) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counts(world)[[1, 200]].tolist(), demand.show_demand(world, "pics").retrievals) == ([40, 80], 120)


def test_a_count_stays_at_its_greatest(world):
    add(world, {3: 2**32 - 2})
    add(world, {3: 5})
    assert counts(world)[3] == 2**32 - 1


def test_counts_decay_rounded_down_and_are_forgotten(world):
    add(world, {0: 1, 1: 5, 2: 8})
    assert demand.decay_demand(world, "pics", 0.5) == 6
    assert counts(world, 3).tolist() == [0, 2, 4]
    assert demand.decay_demand(world, "pics", 0.0) == 0
    assert not counts(world).any()
    assert demand.show_demand(world, "pics").since is None


def test_the_order_demand_is_refused_where_nothing_was_retrieved(world):
    for call in (
        lambda: platform.start(world, order="demand"),
        lambda: plan_preview.preview(world, StartRequest("pics", "kin", order="demand")),
    ):
        with pytest.raises(ConflictError, match="gallery demand import pics FILE"):
            call()
    with pytest.raises(UsageError, match=r"cannot weight 'sigma'.*entropy"):
        platform.start(world, order="demand", demand_base="sigma")


@pytest.mark.parametrize("base", ["entropy", "random"])
def test_a_rollout_in_the_order_of_demand_takes_what_is_retrieved_most_first(world, base):
    rng = np.random.default_rng(3)
    retrieved = {int(row): int(rng.integers(1, 50)) for row in rng.choice(240, 60, replace=False)}
    add(world, retrieved)
    request = StartRequest("pics", "kin", prototypes="classes", order="demand", demand_base=base)
    previewed = plan_preview.preview(world, request, first=240).first_items
    row = advance.advance(world, platform.start(world, order="demand", demand_base=base).id)
    with world.engine.connect() as connection:
        stored = load_matrix(connection, row.gallery_id, before=row.id).vectors
        weighted = replace(row, config=row.config | {"demand_base": "entropy"})  # needs prototypes
        inputs = read_inputs(connection, weighted, vectors=lambda: stored, old_vectors=lambda: stored)
        planned = plan_rows(connection, row, 0)
        keys = {i.row: i.key for i in gallery_queries.items_of_rows(connection, row.gallery_id, range(240))}
    prototypes = choose_prototypes(world, row, inputs, np.random.default_rng(0))
    weights = np.ones(240, np.float32)
    weights[list(retrieved)] += list(retrieved.values())
    scores = order_scores(base, stored, prototypes, 0.05, np.random.default_rng(0)) * weights
    np.testing.assert_array_equal(planned, order_rows(scores))
    assert [item["key"] for item in previewed] == [keys[int(each)] for each in planned]
    assert platform.work(world, row.id).state == "finalizable"


def test_the_server_counts_what_it_returns(world):
    with client_of(world) as client:
        asked = {"key": "class-04/0.png", "k": 3}
        for _ in range(2):
            hits = client.post("/search/pics", json=asked).json()["hits"]
        assert len(hits) == 3
    found = counts(world)  # the server has ended: everything is written
    assert {int(row): int(found[row]) for row in np.flatnonzero(found)} == {hit["row"]: 2 for hit in hits}


def test_counts_reach_the_ledger_while_the_server_runs(world, monkeypatch):
    monkeypatch.setattr("orchestrator.serving.retrievals.FLUSH_S", 0.05)
    with client_of(world) as client:
        client.post("/search/pics", json={"key": "class-04/0.png", "k": 1})
        until(lambda: counts(world).sum() == 1)


def test_the_commands_import_show_and_decay(world, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOTREFRESH_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("HOTREFRESH_BROKER_URL", settings.broker_url)
    monkeypatch.setenv("HOTREFRESH_DATA_DIR", str(settings.data_dir))
    log = log_file(tmp_path, "item,count\nclass-00/0.png,4\n")
    assert main(["gallery", "demand", "import", "pics", str(log)]) == 0
    assert main(["gallery", "demand", "decay", "pics", "--keep", "0.5", "--yes"]) == 0
    capsys.readouterr()
    assert main(["gallery", "demand", "show", "pics", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["retrievals"], shown["most_retrieved"][0]["key"]) == (2, "class-00/0.png")
    assert main(["gallery", "demand", "import", "pics", str(tmp_path / "none.csv")]) == 2
