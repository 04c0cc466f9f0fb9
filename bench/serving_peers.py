"""Row 10's peers, each beside its own static state: two indexes with tombstones, pgvector, Milvus. Sizes they can bear."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import psycopg

from bench.refreshed import BATCH, MOVED, RATE_PER_S
from bench.result import Row
from bench.scratch import scratch_context
from bench.serving_windows import Upserts, in_windows, rows_of
from bench.stubs import NumberedTexts
from orchestrator.context import Context
from orchestrator.core.metrics import top_k
from orchestrator.serving.lock import WriterPreferringLock
from orchestrator.settings import Settings

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
DIM, K, SEED = 64, 10, 0
N_MEMORY, N_DATABASE = 262_144, 10_240
SECONDS = 1.6


class Data:
    """What every peer holds first, and what refreshes it: rows in a random order, batches of 1,024, again and again."""

    def __init__(self, n: int) -> None:
        numbers = np.arange(n)
        self.n = n
        self.old, self.new = (NumberedTexts(DIM, moved).vectors(numbers) for moved in (0.0, MOVED))
        self.queries = self.new[np.random.default_rng(SEED).permutation(n)[:1000]]
        self._order = np.random.default_rng(SEED + 1).permutation(n)

    def batch(self, number: int) -> tuple[I64, F32]:
        """The rows and vectors of a batch; after the last one the old vectors come back, so that there is always work."""
        of_round = self.n // BATCH
        rows = self._order[number % of_round * BATCH :][:BATCH]
        return rows, (self.old if number // of_round % 2 else self.new)[rows]


def measure(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """All peers; what cannot run here says why."""
    memory, database = Data(N_MEMORY // (4 if quick else 1)), Data(N_DATABASE // (4 if quick else 1))
    seconds = SECONDS / (4 if quick else 1)
    rows = _two_indexes(memory, repeats, seconds)
    with scratch_context(settings) as context:
        rows += _or_why("pgvector", lambda: _pgvector(context, database, repeats, seconds))
    return rows + _or_why("Milvus", lambda: _milvus(database, repeats, seconds))


def _or_why(name: str, peer: Callable[[], list[Row]]) -> list[Row]:
    try:
        return peer()
    except (ImportError, psycopg.Error) as error:
        return [Row(10, f"peer: {name}, not measured", 0.0, "1/s", str(error).splitlines()[0])]


class TwoIndexes:
    """New vectors go into a second index, their old ones are marked in a bitmap: a search asks both and merges."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._old, self._new = faiss.IndexFlatIP(DIM), faiss.IndexFlatIP(DIM)
        self._old.add(data.old)
        self._bits = np.full(-(-data.n // 8), 255, np.uint8)
        self._rows: I64 = np.zeros(0, np.int64)
        self._lock = WriterPreferringLock()

    def search(self, number: int) -> tuple[F32, I64]:
        """The k best of both."""
        query = self._data.queries[number % len(self._data.queries)][None]
        with self._lock.read():
            if not len(self._rows):
                found: tuple[F32, I64] = self._old.search(query, K)
                return found
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(self._bits))
            scores, rows = self._old.search(query, K, params=chosen)
            fresh, places = self._new.search(query, K)
            scores, rows = np.hstack([scores, fresh]), np.hstack([rows, self._rows[places]])
        best = np.argsort(-scores, axis=1)[:, :K]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def upsert(self, number: int) -> None:
        """Mark the old, add the new."""
        rows, vectors = self._data.batch(number)
        with self._lock.write():
            np.bitwise_and.at(self._bits, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))
            self._new.add(vectors)
            self._rows = np.append(self._rows, rows)


def _two_indexes(data: Data, repeats: int, seconds: float) -> list[Row]:
    """The static windows search one index without tombstones: `static` has an instance of its own."""
    still, moving, refreshing = TwoIndexes(data), TwoIndexes(data), threading.Event()

    class Refresh(Upserts):
        def go(self, seconds: float) -> None:
            refreshing.set()
            super().go(seconds)

        def wait(self) -> float:
            refreshing.clear()
            return super().wait()

    windows = in_windows(
        lambda number: (moving if refreshing.is_set() else still).search(number),
        Refresh(moving.upsert, BATCH, RATE_PER_S),
        repeats,
        seconds,
    )
    query = data.queries[:1]
    mixture = data.old.copy()
    mixture[moving._rows] = data.new[moving._rows]
    assert np.allclose(moving.search(0)[0], top_k(query, mixture, K)[0], atol=1e-5), "the peer is exact"
    share = len(moving._rows) / data.n
    subject = f"peer: two indexes with tombstones in this process, N = {data.n:,}, d = {DIM}, k = {K}, up to {share:.0%} new"
    return rows_of(windows, subject, aimed=False)


def _pgvector(context: Context, data: Data, repeats: int, seconds: float) -> list[Row]:
    """Upserts by COPY into a temporary table and INSERT … ON CONFLICT; a search is ORDER BY … LIMIT."""
    url = context.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    rows: list[Row] = []
    with psycopg.connect(url, autocommit=True) as reader, psycopg.connect(url, autocommit=True) as writer:
        reader.execute("CREATE EXTENSION IF NOT EXISTS vector")
        found = reader.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        assert found is not None
        reader.execute(f"CREATE TABLE peer (id bigint PRIMARY KEY, v vector({DIM}))")
        writer.execute(f"CREATE TEMPORARY TABLE arriving (id bigint, v vector({DIM}))")
        _copy(writer, "peer", np.arange(data.n), data.old)
        reader.execute("SET max_parallel_workers_per_gather = 0")

        def upsert(number: int) -> None:
            with writer.transaction():
                writer.execute("TRUNCATE arriving")
                _copy(writer, "arriving", *data.batch(number))
                writer.execute(
                    "INSERT INTO peer SELECT * FROM arriving ON CONFLICT (id) DO UPDATE SET v = excluded.v"
                )

        def search(number: int) -> list[int]:
            query = _text(data.queries[number % len(data.queries)])
            asked = reader.execute("SELECT id FROM peer ORDER BY v <#> %s::vector LIMIT %s", (query, K))
            return [row[0] for row in asked]

        for kind in ("exact scan", "HNSW"):
            if kind == "HNSW":
                reader.execute("VACUUM ANALYZE peer")
                reader.execute("CREATE INDEX ON peer USING hnsw (v vector_ip_ops)")
            windows = in_windows(search, Upserts(upsert, BATCH, RATE_PER_S), repeats, seconds)
            recall = _recall(search, data, _all_vectors(reader, data.n))
            subject = (
                f"peer: pgvector {found[0]} {kind}, N = {data.n:,}, d = {DIM}, k = {K}, recall {recall:.3f}"
            )
            rows += rows_of(windows, subject, aimed=False)
    return rows


def _text(vector: F32) -> str:
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def _copy(connection: psycopg.Connection[Any], table: str, rows: I64, vectors: F32) -> None:
    with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
        for row, vector in zip(rows.tolist(), vectors, strict=True):
            copy.write_row((row, _text(vector)))


def _all_vectors(connection: psycopg.Connection[Any], n: int) -> F32:
    stored = connection.execute("SELECT v::real[] FROM peer ORDER BY id").fetchall()
    assert len(stored) == n
    return np.array([row[0] for row in stored], np.float32)


def _recall(search: Callable[[int], list[int]], data: Data, mixture: F32, asked: int = 50) -> float:
    exact = top_k(data.queries[:asked], mixture, K)[1]
    return float(np.mean([len({*search(number)} & {*exact[number].tolist()}) / K for number in range(asked)]))


def _milvus(data: Data, repeats: int, seconds: float) -> list[Row]:
    """milvus-lite through its client, a FLAT index, the strongest consistency it has."""
    from importlib.metadata import version

    from pymilvus import MilvusClient  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(str(Path(folder) / "peer.db"))
        fields = client.prepare_index_params()
        fields.add_index("vector", index_type="FLAT", metric_type="IP")
        client.create_collection("peer", dimension=DIM, metric_type="IP", auto_id=False, index_params=fields)
        held = data.old.copy()

        def put(rows: I64, vectors: F32) -> None:
            held[rows] = vectors
            client.upsert(
                "peer",
                [
                    {"id": row, "vector": each}
                    for row, each in zip(rows.tolist(), vectors.tolist(), strict=True)
                ],
            )

        for at in range(0, data.n, BATCH):
            put(np.arange(data.n)[at : at + BATCH], data.old[at : at + BATCH])

        def search(number: int) -> list[int]:
            query = data.queries[number % len(data.queries)].tolist()
            return [int(hit["id"]) for hit in client.search("peer", [query], limit=K)[0]]

        upserts = Upserts(lambda number: put(*data.batch(number)), BATCH, RATE_PER_S)
        windows = in_windows(search, upserts, repeats, seconds)
        recall = _recall(search, data, held)
        client.close()
    subject = f"peer: milvus-lite {version('milvus-lite')} FLAT, N = {data.n:,}, d = {DIM}, k = {K}, recall {recall:.3f}"
    return rows_of(windows, subject, aimed=False)
