"""A snapshot's file is whole or not there, and a copy is of one moment whatever is written while it is made."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest

from orchestrator import failpoints
from orchestrator.errors import ConflictError
from orchestrator.failpoints import SNAPSHOT_POINTS
from orchestrator.index import make_index
from orchestrator.serving import snapshots
from orchestrator.serving.lock import WriterPreferringLock
from orchestrator.serving.served import Served
from orchestrator.serving.snapshot_file import Draft, UnusableSnapshotError, only_writer, read
from orchestrator.serving.snapshots import Copy, InterruptedCopyError

DIM = 8


class Held:
    """What is served, and a place of the log that moves with every write."""

    def __init__(self, n=300):
        self.lock = WriterPreferringLock()
        self.random = np.random.default_rng(5)
        vectors = self.random.normal(size=(n, DIM)).astype(np.float32)
        self.served = Served(make_index("faiss-flat", vectors), np.ones(n, np.int64), None, 1)
        self.seq, self.past = 1, {}
        self.remember()

    def current(self):
        return self.served, (self.seq, "batch", 1, "now")

    def remember(self):
        self.past[self.seq] = self.served.index.vectors().tobytes(), self.served.version.tobytes()

    def apply(self, rows=40):
        """A batch, sometimes with rows that came late, or a deletion."""
        with self.lock.write():
            n = len(self.served.version)
            if self.random.random() < 0.2:
                self.served.grow(n + 7)
                self.served.index.replace(np.arange(n, n + 7), np.ones((7, DIM), np.float32))
                self.served.mark(np.arange(n, n + 7), self.seq)
            chosen = np.sort(self.random.choice(n, rows, replace=False))
            self.served.index.replace(chosen, self.random.normal(size=(rows, DIM)).astype(np.float32))
            self.served.mark(chosen, self.seq)
            self.served.empty(chosen[:2])
            self.seq += 1
            self.remember()

    def write(self, path, stop=None):
        with only_writer(path.parent), Draft(path) as draft:
            copied = Copy(draft, self.lock, self.current, stop).run()
            draft.declare("vectors", "<f4", (copied.n, copied.width))
            draft.append("version", copied.version)
            draft.finish({"mark": list(copied.mark)})

    def written(self, path):
        """The place of a file, which holds what was served at that place."""
        kept = read(path)
        seq = kept.description["mark"][0]
        assert (kept.arrays["vectors"].tobytes(), kept.arrays["version"].tobytes()) == self.past[seq]
        return seq


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replicas" / "1" / "vectors.snapshot"


def test_a_copy_is_of_one_place_of_the_log_whatever_comes_between_two_slices(path, monkeypatch):
    monkeypatch.setattr(snapshots, "SLICE_BYTES", 60 * DIM * 4)
    for seed in range(20):
        held, draw = Held(), random.Random(seed)
        monkeypatch.setattr(
            snapshots,
            "reach",
            lambda point: [held.apply() for _ in range(draw.randrange(3))],  # noqa: B023
        )
        held.write(path)
        assert held.written(path) == held.seq
        assert held.served.written is None


def test_a_copy_beside_a_thread_that_writes_without_a_pause_ends_and_is_of_one_place(path, monkeypatch):
    monkeypatch.setattr(snapshots, "SLICE_BYTES", 10 * DIM * 4)
    held, over = Held(), threading.Event()

    def run():
        while not over.is_set() and held.seq < 5000:
            held.apply()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        places = []
        for _ in range(5):
            held.write(path)
            places.append(held.written(path))
    finally:
        over.set()
        thread.join()
    assert places == sorted(places)


def test_two_copies_and_two_writers_do_not_meet(path):
    held = Held()
    with only_writer(path.parent), pytest.raises(ConflictError, match="another process"):
        held.write(path)
    held.served.written = []
    with pytest.raises(InterruptedCopyError, match="under way"):
        held.write(path)
    assert held.served.written == [], "the other copy goes on"


@pytest.mark.parametrize("point", SNAPSHOT_POINTS)
def test_killed_at_any_stage_it_leaves_the_snapshot_before_or_the_new_one(path, point):
    held = Held()
    for before in (None, 1):
        if before is not None:
            held.write(path)
            held.apply()
        child = os.fork()
        if child == 0:
            try:
                failpoints.arm(f"{point}=kill")
                held.write(path)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        if point == "snapshot_named":
            assert held.written(path) == held.seq
        elif before is None:
            with pytest.raises(UnusableSnapshotError, match="there is no snapshot"):
                read(path)
        else:
            assert held.written(path) == before
        if point != "snapshot_named":
            assert len(list(path.parent.glob(".*"))) == 1
        held.write(path)
        assert sorted(each.name for each in path.parent.iterdir()) == ["lock", "vectors.snapshot"]
        path.unlink()


def test_every_byte_of_a_file_is_checked(path):
    held = Held(6)
    held.write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for broken in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(broken)
            with pytest.raises(UnusableSnapshotError):
                read(path)
    path.write_bytes(whole)
    assert held.written(path) == 1
    path.write_bytes(whole[:64] + whole)
    with pytest.raises(UnusableSnapshotError, match="not as long"):
        read(path)


def test_a_file_of_another_format_or_with_objects_in_it_is_not_read(path, monkeypatch):
    from orchestrator.serving import snapshot_file

    held = Held(6)
    monkeypatch.setattr(snapshot_file, "FORMAT", 2)
    held.write(path)
    monkeypatch.setattr(snapshot_file, "FORMAT", 1)
    with pytest.raises(UnusableSnapshotError, match="of format 2"):
        read(path)
    with Draft(path) as draft:
        draft.append("words", np.zeros(3, "<f8"))
        draft.finish({})
    with pytest.raises(UnusableSnapshotError, match="of type <f8"):
        read(path)
    assert path.stat().st_mode & 0o777 == 0o600, "labels and attributes are nobody else's"
