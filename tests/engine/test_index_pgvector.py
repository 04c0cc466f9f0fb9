"""What the pgvector backend does to its server, and what becomes of it when a process or the server dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.index import IndexOptions, make_index

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, numpy as np
from orchestrator.index import IndexOptions, make_index
index = make_index("pgvector", np.eye(4, dtype=np.float32), IndexOptions(url=sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def some(n, dim=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def asked(url, statement, *parameters):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def tables(url):
    return {
        name
        for (name,) in asked(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'hotrefresh_index'")
    }


@pytest.fixture
def make(empty_database):
    made = []

    def make(vectors, name="pgvector", url=empty_database, **others):
        made.append(make_index(name, vectors, IndexOptions(url=url, **others)))
        return made[-1]

    yield make
    for index in made:
        index.close()


@pytest.mark.parametrize("name", ["pgvector", "pgvector-hnsw"])
def test_closed_it_leaves_no_table_and_no_connection(make, empty_database, name):
    index = make(some(50), name)
    index.search(some(2), 3)
    assert len(tables(empty_database)) == 1
    index.close()
    assert tables(empty_database) == set()
    left = asked(
        empty_database,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hotrefresh index'",
    )
    assert left == [(0,)] or _soon_gone(empty_database)


def _soon_gone(url):
    """A backend ends a moment after its client has closed the connection."""
    for _ in range(100):
        asked(url, "SELECT pg_sleep(0.05)")
        if asked(
            url,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hotrefresh index'",
        ) == [(0,)]:
            return True
    return False


def test_the_table_of_a_killed_process_goes_when_the_next_opens_and_no_living_one(make, empty_database):
    living = make(some(20))
    of_living = tables(empty_database)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, empty_database],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        of_both = tables(empty_database)
        assert len(of_both) == 2
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    of_next = set()
    for _ in range(100):  # the server notices the broken connection a moment later
        make(some(5)).close()
        of_next = tables(empty_database)
        if of_next == of_living:
            break
    assert of_next == of_living
    assert (living.search(some(20), 1)[1][:, 0] == np.arange(20)).all()


def test_a_lost_lock_is_noticed_by_the_next_write_and_by_the_next_connection(make, empty_database):
    for use in (lambda index: index.replace(np.array([1]), some(1)), lambda index: index.search(some(1), 1)):
        index = make(some(20))
        asked(
            empty_database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'hotrefresh index'",
        )
        assert not index.lost
        with pytest.raises(UnreachableError, match="cannot be used"):
            use(index)
        assert index.lost
        index.close()
    sharded = make(some(20), shards=2)
    assert not sharded.lost
    sharded._shards[1].lost = True
    assert sharded.lost


def test_the_graph_answers_unless_few_rows_are_allowed(make, empty_database):
    index = make(some(5000), "pgvector-hnsw")

    def walks(wanted):
        """Walks through the graph so far; a connection reports its own when it is idle, a moment later."""
        for _ in range(100):
            for connection in index._idle:
                connection.execute("SELECT pg_stat_force_next_flush()")
            found = asked(
                empty_database, "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname ~ 'vec_idx'"
            )[0][0]
            if found >= wanted:
                return found
            asked(empty_database, "SELECT pg_sleep(0.05)")
        return found

    index.search(some(4, seed=1), 10)
    assert walks(4) == 4
    index.search(some(3, seed=1), 10, np.arange(5000) < 4000)
    assert walks(7) == 7
    index.search(some(3, seed=1), 10, np.arange(5000) < 40)
    index.search(some(1, seed=1), 2000)  # more than the graph keeps candidates
    index.search(some(2, seed=1), 10)
    assert walks(9) == 9


def test_whoever_may_not_install_the_extension_is_told_what_to_do(empty_database):
    asked(empty_database, "DROP ROLE IF EXISTS nobody_much")
    asked(empty_database, "CREATE ROLE nobody_much LOGIN PASSWORD 'lost-and-found'")
    place = empty_database.split("@", 1)[1]
    url = f"postgresql://nobody_much:lost-and-found@{place}"
    try:
        with pytest.raises(UnreachableError, match="CREATE EXTENSION vector") as refused:
            make_index("pgvector", some(3), IndexOptions(url=url))
        assert "lost-and-found" not in str(refused.value)
        asked(empty_database, "CREATE EXTENSION vector")
        with pytest.raises(UnreachableError, match="GRANT CREATE ON DATABASE"):
            make_index("pgvector", some(3), IndexOptions(url=url))
        asked(empty_database, "CREATE SCHEMA hotrefresh_index AUTHORIZATION nobody_much")
        index = make_index("pgvector", some(3), IndexOptions(url=url))
        assert index.search(some(3), 1)[1][:, 0].tolist() == [0, 1, 2]
        index.close()
    finally:
        asked(empty_database, "DROP OWNED BY nobody_much CASCADE")
        asked(empty_database, "DROP ROLE nobody_much")


def test_the_extension_may_be_in_a_schema_of_its_own(make, empty_database):
    asked(empty_database, "CREATE SCHEMA elsewhere")
    asked(empty_database, "CREATE EXTENSION vector SCHEMA elsewhere")
    assert make(some(30)).search(some(30), 1)[1][:, 0].tolist() == list(range(30))
    make(some(30), "pgvector-hnsw")


def test_what_cannot_be_is_said_and_no_password_with_it():
    with pytest.raises(UsageError, match="HOTREFRESH_INDEX_URL"):
        make_index("pgvector", some(3))
    with pytest.raises(UsageError, match="not a PostgreSQL URL") as refused:
        make_index("pgvector", some(3), IndexOptions(url="mysql://me:secret@host/db"))
    assert "secret" not in str(refused.value)
    with pytest.raises(UnreachableError, match="cannot be used") as refused:
        make_index("pgvector", some(3), IndexOptions(url="postgresql://me:secret@127.0.0.1:1/db"))
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(IndexOptions(url="postgresql://me:secret@127.0.0.1:1/db", token="secret"))
    with pytest.raises(UsageError, match="2000 dimensions"):
        make_index("pgvector-hnsw", some(3, dim=2001), IndexOptions(url="postgresql://me@127.0.0.1:1/db"))


def test_equal_scores_go_to_the_lower_row(make):
    gallery = np.tile(some(3), (20, 1))
    _, rows = make(gallery).search(some(3), 7)
    assert rows.tolist() == [[first + 3 * i for i in range(7)] for first in range(3)]


def test_wide_vectors_are_kept_outside_the_page(make):
    gallery = some(20, dim=2500)
    index = make(gallery)
    assert index.search(gallery, 1)[1][:, 0].tolist() == list(range(20))
    np.testing.assert_array_equal(index.vectors(), gallery)
