"""A replica on every index backend serves what the ledger says: through a refresh, a late item, a deletion, a lost index."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from PIL import Image

from cli.main import main
from models.datasets import read_item
from orchestrator.errors import UnreachableError
from orchestrator.index import BACKENDS, CODED
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.service import items
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def gallery_of(context):
    with context.engine.connect() as connection:
        return gallery_queries.gallery_by_name(connection, "pics")


def assert_right(context, replicas):
    """Each replica holds the ledger's mixture."""
    with context.engine.connect() as connection:
        matrix = load_matrix(connection, gallery_of(context).id)
    for name, replica in replicas.items():
        vectors, version, seq = replica.snapshot()
        np.testing.assert_array_equal(vectors, matrix.vectors, err_msg=name)
        np.testing.assert_array_equal(version, matrix.version, err_msg=name)
        assert seq == matrix.seq, name


def test_every_backend_follows_a_refresh_and_answers_as_the_flat_one(world, tmp_path):
    replicas = {
        name: Replica(world, gallery_of(world), backend=name) for name in BACKENDS if name not in CODED
    }
    try:
        assert_right(world, replicas)
        row = platform.start(world)
        (tmp_path / "add" / "new").mkdir(parents=True)
        Image.fromarray(np.random.default_rng(8).integers(0, 255, (32, 32, 3), np.uint8)).save(
            tmp_path / "add" / "new" / "a.png"
        )
        items.add_items(world, "pics", str(tmp_path / "add"))
        items.delete_items(world, "pics", ["class-04/0.png"])
        platform.work(world, row.id)
        for replica in replicas.values():
            replica.catch_up()
        assert_right(world, replicas)
        with world.engine.connect() as connection:
            uris = [
                gallery_queries.item_by_key(connection, gallery_of(world).id, key).uri
                for key in ("new/a.png", "class-01/3.png", "class-02/5.png")
            ]
        queries = [read_item(uri) for uri in uris]
        wanted = [[hit.key for hit in answer.hits] for answer in replicas["faiss-flat"].search(queries, k=5)]
        assert wanted[0][0] == "new/a.png"
        for name, replica in replicas.items():
            found = [[hit.key for hit in answer.hits] for answer in replica.search(queries, k=5)]
            if BACKENDS[name][1] == "exact":
                assert found == wanted, name
            else:
                assert [keys[0] for keys in found] == [keys[0] for keys in wanted], name
                assert all(len(keys) == 5 for keys in found), name
    finally:
        for replica in replicas.values():
            replica.close()
    assert list((world.settings.data_dir / "index").glob("*")) == []
    with psycopg.connect(world.settings.database_url) as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'hotrefresh_index'"
        ).fetchone()
    assert left == (0,)


def test_a_replica_whose_table_was_lost_says_so_and_loads_it_anew(world):
    with Replica(world, gallery_of(world), backend="pgvector") as replica:
        with world.engine.connect() as connection:
            uri = gallery_queries.item_by_key(connection, gallery_of(world).id, "class-01/3.png").uri
        query = read_item(uri)
        with psycopg.connect(world.settings.database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'hotrefresh index'"
            )
        with pytest.raises(UnreachableError, match="the index at"):
            replica.search([query])
        replica.catch_up()
        assert replica.search([query], k=1)[0].hits[0].key == "class-01/3.png"
        assert_right(world, {"pgvector": replica})


def test_the_settings_choose_the_backend_and_a_caller_another(world):
    chosen = world.settings.model_copy(update={"index": "torch", "index_shards": 3})
    world.settings = chosen
    with Replica(world, gallery_of(world)) as replica:
        assert {type(shard).__name__ for shard in replica._served.index._shards} == {"TorchFlat"}
        assert_right(world, {"torch": replica})
    with Replica(world, gallery_of(world), backend="faiss-flat") as replica:
        assert {type(shard).__name__ for shard in replica._served.index._shards} == {"FaissFlat"}


def test_serve_lists_the_backends_and_refuses_an_unknown_one(capsys):
    assert main(["serve", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, (_, exactness, _) in BACKENDS.items():
        assert f"{name} ({exactness}" in said
    assert main(["serve", "--index", "annoy"]) == 2
    assert "faiss-ivf" in capsys.readouterr().err
