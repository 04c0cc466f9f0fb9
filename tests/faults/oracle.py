"""The truth after a fault, read from ledger and extents alone. With `ledger` the only files of the suite that know tables.

`check` is the whole of it: every row, every byte, every count. `glance` is its cheap part, for after each single fault.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import TRANSITIONS, RolloutState
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix, read_batch
from orchestrator.serving.replica import Replica
from orchestrator.store import CorruptExtentError
from tests.faults import ledger

Vectors = npt.NDArray[np.float32]


@dataclass
class Truth:
    """What a check found. `faults` are sentences on everything that is not a count of rows."""

    items: int = 0
    committed: int = 0
    quarantined: int = 0
    lost: int = 0
    duplicated: int = 0
    stale_accepted: int = 0
    wrong_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.duplicated or self.stale_accepted or self.wrong_bytes or self.faults)

    def expect(self, right: bool, sentence: str) -> None:
        """Note a sentence unless what it denies is right."""
        if not right:
            self.faults.append(sentence)


# -- the whole check ----------------------------------------------------------------------------------------------------


def check(context: Context, rollout_id: int, *, finished: bool = True) -> Truth:
    """Everything that must hold for one rollout, every row of it re-embedded.

    Args:
        finished: every batch is committed, so nothing may be missing.
    """
    truth = Truth()
    with _instant(context) as connection:
        row = ledger.rollout(connection, rollout_id)
        _check_rows(context, connection, row, truth, finished)
        _check_log(connection, row.gallery_id, truth)
        _check_counters(connection, row, truth)
        _check_audit(connection, rollout_id, row.state, truth)
        _check_order(connection, row.gallery_id, truth)
        _check_flips(context, connection, row, truth)
    return truth


def check_serving(context: Context, rollout_id: int, follower: Replica | None = None) -> Truth:
    """A replica loaded anew, and one that followed, answer exactly what the ledger and the extents say."""
    truth = Truth()
    with context.engine.connect() as connection:
        gallery_id = ledger.rollout(connection, rollout_id).gallery_id
        gallery = ledger.rows_of(connection, "SELECT name FROM gallery WHERE id = :id", id=gallery_id)[0][0]
    truth.faults += replica_differs(context, open_replica(context, gallery))
    if follower is not None:
        follower.catch_up()
        truth.faults += [f"the one that followed: {each}" for each in replica_differs(context, follower)]
    return truth


def glance(context: Context, rollout_id: int) -> Truth:
    """What can be said in a few milliseconds: the log, the counters, the audit trail."""
    truth = Truth()
    with _instant(context) as connection:
        row = ledger.rollout(connection, rollout_id)
        _check_log(connection, row.gallery_id, truth)
        _check_counters(connection, row, truth)
        _check_audit(connection, rollout_id, row.state, truth)
    return truth


def _instant(context: Context) -> Connection:
    """All that is read through it is of one instant, while others go on."""
    return context.engine.connect().execution_options(isolation_level="REPEATABLE READ")


def _check_rows(
    context: Context, connection: Connection, row: RolloutRow, truth: Truth, finished: bool
) -> None:
    brought, wrong = np.zeros(row.n_items, np.int64), np.zeros(row.n_items, bool)
    expected = _embedded(context, connection, row)
    for entry in log_queries.committed_batches(connection, row.id, 2**62):
        try:
            batch = read_batch(connection, row, entry)
        except CorruptExtentError as error:
            truth.faults.append(str(error))
            truth.wrong_bytes += entry.n
            continue
        rows, vectors = batch.rows, batch.vectors
        np.add.at(brought, rows, 1)
        wrong[rows] |= (vectors.view(np.uint32) != expected[rows].view(np.uint32)).any(axis=1)
        norms = np.linalg.norm(vectors, axis=1)
        truth.expect(
            bool((np.abs(norms - 1) < 1e-2).all()), f"log entry {entry.seq} holds a vector of a wrong length"
        )
    held = {
        int(r)
        for (r,) in ledger.rows_of(connection, "SELECT row FROM quarantine WHERE rollout_id = :id", id=row.id)
    }
    committed = {int(r) for r in np.flatnonzero(brought)}
    truth.items, truth.committed, truth.quarantined = row.n_items, len(committed), len(held - committed)
    truth.expect(
        not held & committed, f"rows {sorted(held & committed)[:5]} are both committed and quarantined"
    )
    truth.duplicated += int(np.maximum(brought - 1, 0).sum())
    truth.wrong_bytes += int(wrong.sum())
    if finished:
        truth.lost += row.n_items - len(committed | held)


def _embedded(context: Context, connection: Connection, row: RolloutRow) -> Vectors:
    """Every item of the rollout's gallery, embedded here and now; zero where it cannot be: (n, dim) float32."""
    items = gallery_queries.items_of_rows(connection, row.gallery_id, list(range(row.n_items)))
    encoder = context.encoder(model_queries.model_by_id(connection, row.to_model_id))
    fresh = np.zeros((row.n_items, encoder.dim), np.float32)
    good = [item for item in items if "poison" not in item.uri]
    fresh[[item.row for item in good]] = encode_uris(encoder, [item.uri for item in good])[0]
    return fresh


def _check_log(connection: Connection, gallery_id: int, truth: Truth) -> None:
    """Serial and without gaps: each number up to the last exactly once."""
    found = ledger.rows_of(
        connection,
        """SELECT b.seq FROM hotrefresh.batch b JOIN hotrefresh.rollout r ON r.id = b.rollout_id
           WHERE r.gallery_id = :id AND b.seq IS NOT NULL
           UNION ALL SELECT seq FROM hotrefresh.log_event WHERE gallery_id = :id ORDER BY seq""",
        id=gallery_id,
    )
    numbers = [seq for (seq,) in found]
    last = log_queries.last_seq(connection, gallery_id)
    truth.expect(
        numbers == list(range(1, last + 1)),
        f"the log up to {last} has {len(numbers)} entries and {len(set(numbers))} numbers",
    )
    twice = sum(count - 1 for count in Counter(numbers).values())
    truth.duplicated += twice


def _check_counters(connection: Connection, row: RolloutRow, truth: Truth) -> None:
    """The roll-ups that a commit writes against a recount of what was committed."""
    batches, items, holes = ledger.rows_of(
        connection,
        """SELECT count(*), coalesce(sum(n - coalesce(cardinality(holes), 0)), 0),
                  coalesce(sum(coalesce(cardinality(holes), 0)), 0)
           FROM batch WHERE rollout_id = :id AND state = 'committed'""",
        id=row.id,
    )[0]
    counted = (row.committed_batches, row.committed_items, row.quarantined_items)
    truth.expect(
        counted == (batches, items, holes), f"counters say {counted}, a recount {(batches, items, holes)}"
    )
    held = ledger.rows_of(connection, "SELECT count(*) FROM quarantine WHERE rollout_id = :id", id=row.id)[0][
        0
    ]
    truth.expect(held >= holes, f"{holes} items are left out of committed batches, {held} are quarantined")
    banded = ledger.rows_of(
        connection, "SELECT coalesce(sum(committed), 0) FROM band_progress WHERE rollout_id = :id", id=row.id
    )
    truth.expect(banded[0][0] == batches, f"the bands count {banded[0][0]} batches, the recount {batches}")
    rolled = ledger.rows_of(
        connection, "SELECT coalesce(sum(items), 0) FROM progress WHERE rollout_id = :id", id=row.id
    )
    truth.expect(
        rolled[0][0] == items, f"the progress rows add up to {rolled[0][0]} items, the recount to {items}"
    )
    over = ledger.rows_of(
        connection,
        "SELECT count(*) FROM batch WHERE rollout_id = :id AND state = 'leased' AND lease_until IS NULL",
        id=row.id,
    )
    truth.expect(over[0][0] == 0, "a lease has no end")


_EDGES = {(edge.from_state, edge.to_state) for edge in TRANSITIONS}


def _check_audit(connection: Connection, rollout_id: int, state: str, truth: Truth) -> None:
    """The audit rows are an unbroken path of legal steps from planned to where the rollout is."""
    trail = ledger.rows_of(
        connection,
        "SELECT action, before, after FROM audit WHERE target = :id AND action LIKE 'rollout.%' ORDER BY id",
        id=str(rollout_id),
    )
    truth.expect(
        bool(trail) and trail[0][0] == "rollout.planned", f"the audit of rollout {rollout_id} has no begin"
    )
    at = RolloutState.PLANNED
    for action, before, after in trail[1:]:
        if not after or "state" not in after:
            continue
        truth.expect(before["state"] == at, f"the audit goes from {at} to {action} without a row between")
        truth.expect(
            (at, after["state"]) in _EDGES, f"the audit holds an illegal step {at} → {after['state']}"
        )
        at = RolloutState(after["state"])
    truth.expect(at == state, f"the audit ends at {at}, the rollout is {state}")


def _check_order(connection: Connection, gallery_id: int, truth: Truth) -> None:
    """Played from its begin, the log never takes rows back to an older version, and nothing comes after an end.

    A rollout's batches lie between its deployment and the reset that a cancel or a rollback writes: a batch outside
    was accepted from somebody whose time was over.
    """
    newest = 0
    ended: set[int] = set()
    for entry in log_queries.log_after(connection, gallery_id, 0, 2**31 - 1):
        if entry.kind == "reset":
            ended.add(entry.rollout_id or 0)
            newest = 0
        elif entry.kind == "batch":
            assert entry.rollout_id is not None
            stale = entry.rollout_id in ended or entry.rollout_id < newest
            truth.stale_accepted += stale
            truth.expect(
                not stale, f"log entry {entry.seq} is of rollout {entry.rollout_id}, whose time was over"
            )
            newest = max(newest, entry.rollout_id)


def _check_flips(context: Context, connection: Connection, row: RolloutRow, truth: Truth) -> None:
    """The newest evaluation of each query set against a plain loop over its queries at that place of the log."""
    if row.kind == "initial" or row.state in ("cancelled", "rolled_back", "failed"):
        return
    before = load_matrix(connection, row.gallery_id, before=row.id).vectors
    for query_set in gallery_queries.query_sets_of_gallery(connection, row.gallery_id):
        found = ledger.rows_of(
            connection,
            """SELECT seq, n, both_right, negative_flips, positive_flips, both_wrong FROM evaluation
               WHERE rollout_id = :rollout AND query_set_id = :query_set AND k = 1 AND slice = 'all'
               ORDER BY seq DESC LIMIT 1""",
            rollout=row.id,
            query_set=query_set.id,
        )
        if not found:
            continue
        now = load_matrix(connection, row.gallery_id, up_to=found[0][0]).vectors
        queries = load_query_set(connection, query_set)
        relevant = set(gallery_queries.relevant_pairs(connection, query_set.id))
        assert row.from_model_id is not None
        right = []
        older = [r for r in rollout_queries.effective_rollouts(connection, row.gallery_id) if r.id < row.id]
        for model_id, rollout, matrix in (
            (row.from_model_id, older[-1] if older else None, before),
            (row.to_model_id, row, now),
        ):
            encoder = context.encoder(model_queries.model_by_id(connection, model_id))
            vectors = _into_the_gallery(context, connection, rollout, encode_uris(encoder, queries.uris)[0])
            right.append(
                [(q, int(np.argmax(matrix @ vector))) in relevant for q, vector in enumerate(vectors)]
            )
        kinds = Counter(zip(*right, strict=True))
        counts = tuple(kinds[pair] for pair in ((True, True), (True, False), (False, True), (False, False)))
        truth.expect(
            tuple(found[0][2:]) == counts,
            f"flips of set {query_set.name!r}: {tuple(found[0][2:])}, a recount {counts}",
        )
        open_flips = dict(
            ledger.rows_of(
                connection,
                """SELECT kind, count(*) FROM flip WHERE rollout_id = :rollout AND query_set_id = :query_set
                   AND reference = 'old_system' AND k = 1 AND healed_seq IS NULL GROUP BY kind""",
                rollout=row.id,
                query_set=query_set.id,
            )
        )
        listed = open_flips.get("negative", 0), open_flips.get("positive", 0)
        truth.expect(listed == counts[1:3], f"{listed} flips are open, the counts say {counts[1:3]}")


def _into_the_gallery(
    context: Context, connection: Connection, rollout: RolloutRow | None, vectors: Vectors
) -> Vectors:
    """Queries' vectors as they meet the gallery while a rollout serves: through its query adapter, where it has one."""
    if rollout is None or rollout.strategy != "query-adapter":
        return vectors
    assert rollout.adapter_id is not None
    return context.adapter(model_queries.adapter_by_id(connection, rollout.adapter_id)).transform(vectors)[0]


# -- replicas -------------------------------------------------------------------------------------------------------------


def open_replica(context: Context, gallery: str) -> Replica:
    """A replica of a gallery, loaded now."""
    with context.engine.connect() as connection:
        row = gallery_queries.gallery_by_name(connection, gallery)
    assert row is not None
    return Replica(context, row)


def replica_differs(context: Context, replica: Replica) -> list[str]:
    """In what a replica's answers differ from ledger and extents at its place of the log: scores and versions of all rows."""
    with _instant(context) as connection:
        matrix = load_matrix(connection, replica.gallery.id)
        serving = rollout_queries.serving_now(connection, replica.gallery.id)
        assert serving is not None
        model = model_queries.model_by_id(connection, serving.model_id)
        encoder = context.encoder(model)
        rollout = None if serving.rollout_id is None else ledger.rollout(connection, serving.rollout_id)
        asked = {
            query: _into_the_gallery(context, connection, rollout, encoder.encode([query]))[0]
            for query in ("query 1", "query 7")
        }
    wrong = []
    for query, vector in asked.items():
        answer = replica.search([query], k=len(matrix.version))[0]
        scores = matrix.vectors @ vector
        if answer.seq != matrix.seq or answer.model != model.name:
            wrong.append(
                f"it is at {answer.seq} with {answer.model}, the ledger at {matrix.seq} with {model.name}"
            )
            continue
        rows = np.array([hit.row for hit in answer.hits], np.int64)
        if sorted(rows) != np.flatnonzero(matrix.version).tolist():
            wrong.append(
                f"it answers with {len(rows)} rows, the ledger holds {np.count_nonzero(matrix.version)}"
            )
            continue
        if np.abs(scores[rows] - np.array([hit.score for hit in answer.hits])).max() > 1e-5:
            wrong.append("a vector that it serves is not the ledger's")
        if (matrix.version[rows] != np.array([hit.rollout_id for hit in answer.hits])).any():
            wrong.append("a version that it serves is not the ledger's")
    return wrong


def fingerprint(context: Context, gallery: str) -> tuple[int, bytes]:
    """What is served: the model's id, and every vector and its version as bytes."""
    with _instant(context) as connection:
        row = gallery_queries.gallery_by_name(connection, gallery)
        assert row is not None
        matrix, serving = load_matrix(connection, row.id), rollout_queries.serving_now(connection, row.id)
    assert serving is not None
    return serving.model_id, matrix.vectors.tobytes() + matrix.version.tobytes()
