"""Searches under load while a gallery is refreshed: every score is of a vector that was, every answer of one mixture.

Three processes: one refreshes at 10,000 items a second, one holds the replica, this one searches at fixed moments. Afterwards
each answer is recomputed: the mixture of the place of the log that it names is built from the ledger's batches and the
vectors that both models give, without the engine's own reading of either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench import refreshed
from bench.stubs import NumberedTexts
from orchestrator.context import Context
from orchestrator.core.metrics import top_k
from orchestrator.index import BACKENDS, CODED
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service import rollouts
from orchestrator.serving.matrix import rows_of_ranks
from tests.faults import report
from tests.faults.crew import until
from tests.faults.searched import FAULTS, Searched, Seen, searched
from tests.faults.volume import FACTOR, scaled

DIM, K = 64, 100
# Queries of one request, in turns: FAISS scans for few and multiplies matrices for many.
TOGETHER = (1, 8, 32)
CLIENTS = 3
REQUESTS_PER_S = 45
# Scores of two kernels on 64 products differ by rounding, 1e-7 each; an old and a new vector's by 1e-2.
TOLERANCE = 5e-6
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def exact_backends() -> list[str]:
    """The backends of any vectors that answer exactly, which is all that do not say otherwise."""

    def is_exact(name: str) -> bool:
        module, kind = BACKENDS[name][0].split(":")
        try:
            return bool(getattr(getattr(import_module(module), kind), "exact", True))
        except Exception:  # noqa: BLE001 - what is not installed says so in its own test
            return True

    return [name for name in sorted(BACKENDS) if name not in CODED and is_exact(name)]


@dataclass
class Found:
    """What is wrong with answers, each of at most a few examples, and how many were looked at."""

    answers: int = 0
    hits: int = 0
    places: set[int] = field(default_factory=set)
    torn: int = 0
    wrong_version: int = 0
    not_best: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.examples) < 5:
            self.examples.append(text)

    def look(self, answer: Seen, scores: Vectors, versions: Rows) -> None:
        """Compare an answer's scores with those of the versions that it states, and these with the committed ones."""
        self.answers += 1
        self.hits += len(answer.rows)
        torn = np.abs(scores - answer.scores) > TOLERANCE
        if torn.any():
            self.torn += int(torn.sum())
            self.note(f"at {answer.seq} row {answer.rows[torn][0]} scores {answer.scores[torn][0]}")
        other = answer.versions != versions
        if other.any():
            self.wrong_version += int(other.sum())
            self.note(
                f"at {answer.seq} row {answer.rows[other][0]} is said to be of {answer.versions[other][0]}"
            )

    @property
    def right(self) -> bool:
        return not (self.torn or self.wrong_version or self.not_best)


def judge(
    seen: Iterable[Seen], rollout: RolloutRow, before: int, batches: dict[int, npt.NDArray[np.int64]], n: int
) -> Found:
    """Recompute every answer.

    Args:
        rollout: the refresh; `before`: the rollout that all rows came from when it began.
        batches: the rows of each committed batch by its place in the log.
    """
    numbers = np.arange(n)
    old, new = (NumberedTexts(DIM, moved).vectors(numbers) for moved in (0.0, refreshed.MOVED))
    queries = NumberedTexts(DIM, refreshed.MOVED)
    mixture, version = old.copy(), np.full(n, before, np.int64)
    ahead = sorted(batches)
    found = Found()
    by_place: dict[int, list[Seen]] = {}
    for answer in seen:
        by_place.setdefault(answer.seq, []).append(answer)
    for place in sorted(by_place):
        while ahead and ahead[0] <= place:
            rows = batches[ahead.pop(0)]
            mixture[rows], version[rows] = new[rows], rollout.id
        answers = by_place[place]
        asked = queries.vectors(np.array([answer.query for answer in answers]))
        scores, best = top_k(asked, mixture, K)
        found.places.add(place)
        for number, answer in enumerate(answers):
            assert answer.model == refreshed.NEW
            stored = np.where((answer.versions == rollout.id)[:, None], new[answer.rows], old[answer.rows])
            found.look(answer, stored @ asked[number], version[answer.rows])
            if not _are_best(answer, asked[number], mixture, scores[number], best[number]):
                found.not_best += 1
                found.note(f"at {place} the answer to {answer.query} is not that of the committed mixture")
    return found


def _are_best(answer: Seen, query: Vectors, mixture: Vectors, scores: Vectors, rows: Rows) -> bool:
    """Whether these are the k best rows of the mixture; rows whose scores are equal but for rounding may change places."""
    if len(set(answer.rows.tolist())) != len(rows) or len(answer.rows) != len(rows):
        return False
    if np.abs(scores - answer.scores).max() > TOLERANCE:
        return False
    moved = answer.rows != rows
    return bool((np.abs(mixture[answer.rows[moved]] @ query - scores[moved]) <= TOLERANCE).all())


def open_loop(search: Callable[..., list[Seen]], seed: int, n: int, over: threading.Event) -> list[Seen]:
    """Search at fixed moments until it is over."""
    random, seen, number, started = np.random.default_rng(seed), [], 0, time.monotonic()
    while not over.is_set():
        time.sleep(max(0.0, started + number * CLIENTS / REQUESTS_PER_S - time.monotonic()))
        queries = random.integers(0, n, TOGETHER[number % len(TOGETHER)]).tolist()
        seen += search(queries, K)
        number += 1
    return seen


def refresh_under_load(
    context: Context, gallery: GalleryRow, host: Searched, batch_size: int, seed: int
) -> Found:
    """One refresh from its start to its last batch, searched all the while; then it is rolled back."""
    with transaction(context.engine) as connection:
        before = log_queries.last_seq(connection, gallery.id)
    first = host.connect()
    held = int(first([0], 1)[0].versions[0])
    rollout = refreshed.begin(context, gallery, batch_size)
    until(lambda: first([0], 1)[0].model == refreshed.NEW, "the new model answers")
    over, seen, errors = threading.Event(), [], []

    def load(number: int) -> None:
        try:
            seen.extend(open_loop(host.connect(), seed + number, gallery.n_items, over))
        except Exception as error:  # noqa: BLE001 - any is one too many
            errors.append(error)

    clients = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
    with refreshed.writer(context, rollout) as writer:
        for client in clients:
            client.start()
        writer.go(-(-gallery.n_items // batch_size))
        written = writer.wait()
    time.sleep(0.2)
    over.set()
    for client in clients:
        client.join(60)
    assert not errors, errors[:3]
    assert written["items"] == gallery.n_items
    with transaction(context.engine) as connection:
        entries = log_queries.committed_batches(connection, rollout.id, 2**62)
        batches = {
            each.seq: rows_of_ranks(connection, rollout, each.first_rank, each.n, each.plan_revision)
            for each in entries
        }
    assert min(batches) > before
    assert np.array_equal(np.sort(np.concatenate(list(batches.values()))), np.arange(gallery.n_items))
    found = judge(seen, rollout, held, batches, gallery.n_items)
    rollouts.rollback(context, rollout.id)
    until(lambda: first([0], 1)[0].model == refreshed.OLD, "the old model answers again")
    return found


def added(all_found: list[Found]) -> Found:
    """The sums."""
    total = Found(places=set().union(*(each.places for each in all_found)))
    for each in all_found:
        for name in ("answers", "hits", "torn", "wrong_version", "not_best"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        total.examples += each.examples
    return total


@pytest.fixture
def world(context: Context) -> Context:
    refreshed.register(context, DIM)
    return context


@pytest.mark.parametrize(
    "backend",
    # milvus-lite takes half a minute for what takes the others ten seconds.
    [pytest.param(each, marks=pytest.mark.faults if each == "milvus" else ()) for each in exact_backends()],
)
def test_every_answer_is_of_one_committed_mixture(world: Context, tmp_path: Path, backend: str) -> None:
    gallery = refreshed.load(world, 12_288, DIM)
    with searched(world, tmp_path, gallery.name, backend) as host:
        found = refresh_under_load(world, gallery, host, 512, 0)
    assert found.right, found.examples
    assert found.hits > 10_000
    assert len(found.places) > 3, "searches fell between many batches"


@pytest.mark.faults
@pytest.mark.timeout(7200 * max(1, FACTOR))  # milvus-lite needs most of an hour, the others minutes
@pytest.mark.parametrize("backend", exact_backends())
def test_no_score_of_a_million_is_torn(world: Context, tmp_path: Path, backend: str) -> None:
    wanted, all_found = scaled(1_000_000), []
    gallery = refreshed.load(world, 65_536, DIM)
    with searched(world, tmp_path, gallery.name, backend) as host:
        while sum(each.hits for each in all_found) < wanted:
            batch_size = (1024, 4096, 333)[len(all_found) % 3]
            all_found.append(refresh_under_load(world, gallery, host, batch_size, 100 * len(all_found)))
    found = added(all_found)
    report.record(
        report.Figures(
            f"searches while refreshing 10,000 items/s, {backend}",
            "0 torn scores of 1e6, every answer that of a committed mixture",
            found.hits,
            met=found.right,
            wrong_bytes=found.torn,
            detail={
                "answers": found.answers,
                "places_of_the_log": len(found.places),
                "refreshes": len(all_found),
                "wrong_version": found.wrong_version,
                "not_the_best": found.not_best,
            },
        )
    )
    assert found.right, found.examples


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_sees_a_replica_that_mixes_wrongly(world: Context, tmp_path: Path, fault: str) -> None:
    gallery = refreshed.load(world, 12_288, DIM)
    with searched(world, tmp_path, gallery.name, "faiss-flat", fault) as host:
        found = refresh_under_load(world, gallery, host, 512, 0)
    assert not found.right
