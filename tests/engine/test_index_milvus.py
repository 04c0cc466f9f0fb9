"""What the milvus backend leaves behind, and what it says where something is missing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.index import IndexOptions, make_index

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, pathlib, numpy as np
from orchestrator.index import IndexOptions, make_index
place = {"url": sys.argv[1]} if "://" in sys.argv[1] else {"folder": pathlib.Path(sys.argv[1])}
index = make_index("milvus", np.eye(4, dtype=np.float32), IndexOptions(**place))
print("ready", flush=True)
sys.stdin.read()
"""


def some(n, dim=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def killed_holder(place):
    """A process that holds an index there, killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, place], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@contextmanager
def cluster(folder):
    """milvus-lite under a URL: the protocol of a cluster, without being one."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, database, port = start_server_in_thread(str(folder / "cluster.db"))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=2)
        database.close()


def test_files_of_a_killed_process_go_when_the_next_opens_and_no_living_ones(tmp_path):
    living = make_index("milvus", some(5), IndexOptions(folder=tmp_path))
    of_living = set(tmp_path.iterdir())
    killed_holder(str(tmp_path))
    assert len(set(tmp_path.iterdir())) == 4
    following = make_index("milvus", some(5, seed=1), IndexOptions(folder=tmp_path))
    following.close()
    assert set(tmp_path.iterdir()) == of_living
    assert living.search(some(5), 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_a_server_by_url_keeps_no_collection_of_a_closed_or_killed_process(tmp_path):
    from pymilvus import MilvusClient

    with cluster(tmp_path) as url:
        client = MilvusClient(uri=url)
        client.create_collection("somebody_elses", dimension=4)
        killed_holder(url)
        assert len(client.list_collections()) == 2
        with_token = IndexOptions(url=url, token="not-checked-here", folder=tmp_path / "unused")
        index = make_index("milvus", some(50), with_token)
        names = client.list_collections()
        assert len(names) == 2
        assert index.search(some(50), 1)[1][:, 0].tolist() == list(range(50))
        client.drop_collection(next(name for name in names if name != "somebody_elses"))
        with pytest.raises(UnreachableError, match="cannot be used"):
            index.search(some(1), 1)
        assert index.lost
        index.close()
        assert client.list_collections() == ["somebody_elses"]
        client.close()
    assert not (tmp_path / "unused").exists()


def test_rows_without_a_vector_are_not_stored(tmp_path):
    gallery = some(30)
    gallery[::3] = 0
    index = make_index("milvus", gallery, IndexOptions(folder=tmp_path))
    assert np.isin(index.search(some(4), 30)[1], [*range(0, 30, 3)]).sum() == 0
    index.replace(np.array([1, 3]), np.stack([np.zeros(8, np.float32), some(1)[0]]))
    found = set(index.search(some(1), 30)[1][0].tolist()) - {-1}
    assert found == {row for row in range(30) if row % 3} - {1} | {3}
    index.close()


def test_it_says_nothing_on_stderr_and_an_error_says_what_to_do(tmp_path, capfd):
    with pytest.raises(UnreachableError, match="HOTREFRESH_INDEX_URL") as refused:
        make_index("milvus", some(3), IndexOptions(url="http://me:secret@127.0.0.1:1", token="secret"))
    assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match="no Milvus server"):
        make_index("milvus", some(3), IndexOptions(url="somewhere.db"))
    index = make_index("milvus", some(30), IndexOptions(folder=tmp_path))
    index.search(some(3), 2)
    index.close()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("pymilvus.decorators").getEffectiveLevel() == logging.CRITICAL


@pytest.mark.parametrize("absent", ["pymilvus", "milvus_lite"])
def test_without_the_extra_it_says_which_to_install(absent, tmp_path):
    code = f"""
import sys, pathlib, numpy as np
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {absent!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
plain = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {absent!r} else plain(name, package)
from orchestrator.index import IndexOptions, make_index
try:
    make_index("milvus", np.eye(2, dtype=np.float32), IndexOptions(folder=pathlib.Path({str(tmp_path)!r})))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "UnreachableError" in done.stdout
    assert "pip install 'hotrefresh[milvus]'" in done.stdout
