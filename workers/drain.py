"""The drain pipeline: claim → decode → encode → extent → commit, in three threads so that the encoder never waits.

    feeder   claims the next batch and decodes its items while the encoder is busy with the one before
    encoder  (the calling thread) encodes and does nothing else
    writer   checks the vectors, writes the extent and commits while the encoder is busy with the next one

Every batch in flight has a lease that `LeaseKeeper` renews; a refused renewal or commit means somebody else has the
batch, and it is dropped: the bytes of both writers are the same, the fence lets one of them commit.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.exc import DBAPIError

from models.datasets import read_item
from models.encoders import Encoder
from models.errors import ItemError
from orchestrator.context import Context
from orchestrator.errors import HotrefreshError, UnreachableError
from orchestrator.failpoints import reach
from orchestrator.ledger.database import Line, transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import Claim, RolloutRow
from orchestrator.store.extents import VECTORS, ExtentFile, read_rows
from workers.leases import LeaseKeeper

# A batch that failed as a whole is tried this often before the rollout is paused.
MAX_ATTEMPTS = 3
RETRY_IN_S = 1.0
# Items that a decoding thread takes at once: a future for each would cost more than many items do.
DECODE_TOGETHER = 32


@dataclass
class DrainResult:
    """What one call of `drain` did. `encoder_busy_s` over `wall_s` is how little the encoder waited."""

    batches: int = 0
    items: int = 0
    quarantined: int = 0
    refused: int = 0
    encoder_busy_s: float = 0.0
    wall_s: float = 0.0
    failure: HotrefreshError | None = None


@dataclass
class Work:
    """One batch on its way through the pipeline.

    Attributes:
        places: place in the batch of each prepared item.
        holes: place in the batch → (reason, message).
        encoded: (m, dim) float32, vectors of the prepared items that the encoder did not fail on.
        failed: index into `places` → the encoder's message.
    """

    claim: Claim
    rows: npt.NDArray[np.int64]
    prepared: list[Any]
    places: list[int]
    holes: dict[int, tuple[str, str]]
    decode_s: float
    encode_s: float = 0.0
    encoded: npt.NDArray[np.float32] | None = None
    failed: dict[int, str] = field(default_factory=dict)


@dataclass
class Pipeline:
    """The parts that the three threads share for one rollout."""

    context: Context
    rollout: RolloutRow
    encoder: Encoder
    owner: str
    stop: threading.Event
    committed: Callable[[int], None]
    result: DrainResult = field(default_factory=DrainResult)

    def __post_init__(self) -> None:
        folder = Path(self.rollout.extent_uri)
        self.extents = ExtentFile(folder, VECTORS, self.rollout.n_items, self.encoder.dim)
        self.row_of = read_rows(folder, self.rollout.n_items)
        self.lease_s = float(self.rollout.config.get("lease_s", self.context.settings.lease_s))
        self.line = Line(self.context.engine)
        self.leases = LeaseKeeper(self.context.engine, self.lease_s)
        self.decoders = ThreadPoolExecutor(self.context.settings.decode_threads, thread_name_prefix="decode")
        self.ready: queue.Queue[Work | None] = queue.Queue(maxsize=1)
        self.encoded: queue.Queue[Work | None] = queue.Queue(maxsize=1)
        self.over = threading.Event()

    # -- feeder ---------------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Claim and decode until there is nothing to claim, or the drain is asked to stop."""
        try:
            while not self.stop.is_set() and not self.over.is_set():
                with transaction(self.context.engine) as connection:
                    claim = batch_queries.claim_batch(connection, self.rollout.id, self.owner, self.lease_s)
                    reach("in_claim")
                if claim is None:
                    break
                self.leases.hold(claim)
                reach("claimed")
                try:
                    work = self.prepare(claim)
                    reach("decoded")
                except HotrefreshError as error:
                    self.fail(claim, error)
                    break
                self._hand_over(work)
        except Exception as error:  # noqa: BLE001 — whatever it is, the pipeline must end and say so
            self.abort(error)
        finally:
            self._put_end(self.ready)

    def _hand_over(self, work: Work) -> None:
        while not self.over.is_set():
            try:
                self.ready.put(work, timeout=0.1)
                return
            except queue.Full:
                continue
        self.release(work.claim)

    def _put_end(self, pipe: queue.Queue[Work | None]) -> None:
        while True:
            try:
                pipe.put(None, timeout=0.1)
                return
            except queue.Full:
                if self.over.is_set():
                    self._empty(pipe)

    def _empty(self, pipe: queue.Queue[Work | None]) -> None:
        try:
            while (work := pipe.get_nowait()) is not None:
                self.release(work.claim)
        except queue.Empty:
            return

    def prepare(self, claim: Claim) -> Work:
        """Read and preprocess a batch's items; what cannot be read becomes a hole with its reason."""
        started = time.monotonic()
        first = claim.no * self.rollout.batch_size
        rows = np.asarray(self.row_of[first : first + claim.n], np.int64)
        with transaction(self.context.engine) as connection:
            found = gallery_queries.uris_of_rows(connection, self.rollout.gallery_id, rows.tolist())
        uris = [found.get(row) for row in rows.tolist()]
        slices = [uris[at : at + DECODE_TOGETHER] for at in range(0, len(uris), DECODE_TOGETHER)]
        prepared, places, holes = [], [], {}
        for place, outcome in enumerate(chain.from_iterable(self.decoders.map(self._prepare_items, slices))):
            if isinstance(outcome, ItemError):
                holes[place] = (outcome.reason, str(outcome))
            else:
                prepared.append(outcome)
                places.append(place)
        return Work(claim, rows, prepared, places, holes, time.monotonic() - started)

    def _prepare_items(self, uris: Sequence[str | None]) -> list[Any]:
        return [self._prepare_item(uri) for uri in uris]

    def _prepare_item(self, uri: str | None) -> Any:
        if uri is None:
            return ItemError("missing", "the ledger holds no item at this row")
        try:
            return self.encoder.preprocess(read_item(uri))
        except ItemError as error:
            return error

    # -- encoder --------------------------------------------------------------------------------------------------

    def encode(self) -> None:
        """Encode what is ready, in the calling thread, until the feeder ends."""
        while (work := self.ready.get()) is not None:
            if self.over.is_set():
                self.release(work.claim)
                continue
            started = time.monotonic()
            reach("mid_encode")
            work.encoded, work.failed = encode_or_bisect(self.encoder, work.prepared)
            work.encode_s = time.monotonic() - started
            self.result.encoder_busy_s += work.encode_s
            work.prepared = []  # the pictures are not kept while the writer is busy
            self.encoded.put(work)

    # -- writer ---------------------------------------------------------------------------------------------------

    def vectors_of(self, work: Work) -> npt.NDArray[np.float32]:
        """The batch's vectors in rank order, zero at holes, which are noted: (n, dim) float32."""
        for index, message in work.failed.items():
            work.holes[work.places[index]] = ("encode_failed", message)
        if work.failed and len(work.failed) == len(work.places):
            raise HotrefreshError(
                f"the encoder failed on every item of a batch: {next(iter(work.failed.values()))}. "
                "Look at the worker's log; the batch is given back."
            )
        vectors = np.zeros((work.claim.n, self.encoder.dim), np.float32)
        vectors[[place for index, place in enumerate(work.places) if index not in work.failed]] = work.encoded
        norms = np.linalg.norm(vectors, axis=1)
        for place in np.flatnonzero(~np.isfinite(norms) | (np.abs(norms - 1) > 1e-2)):
            if int(place) not in work.holes:
                vectors[place] = 0
                work.holes[int(place)] = (
                    "bad_vector",
                    f"the encoder returned a vector of norm {norms[place]}",
                )
        return vectors

    def write(self) -> None:
        """Write extents and commit until the encoder ends."""
        while (work := self.encoded.get()) is not None:
            if self.over.is_set():
                self.release(work.claim)
                continue
            try:
                self.store_and_commit(work)
            except HotrefreshError as error:
                self.fail(work.claim, error)
            except Exception as error:  # noqa: BLE001 — whatever it is, the pipeline must end and say so
                self.abort(error)
        self.extents.close()
        self.line.close()

    def store_and_commit(self, work: Work) -> None:
        """Bytes first, durable; then one short transaction that flips the batch's row."""
        if not self.leases.holds(work.claim):
            self.result.refused += 1
            return
        vectors = self.vectors_of(work)
        started = time.monotonic()
        reach("before_write")
        crc = self.extents.write(work.claim.no * self.rollout.batch_size, vectors)
        holes = sorted(work.holes)
        seq = self._commit(work, crc, holes, time.monotonic() - started)
        reach("committed")
        self.leases.drop(work.claim)
        if seq is None:
            self.result.refused += 1
            return
        self.result.batches += 1
        self.result.items += work.claim.n - len(holes)
        self.result.quarantined += len(holes)
        self.committed(seq)

    def _commit(self, work: Work, crc: int, holes: Sequence[int], store_s: float) -> int | None:
        outcome: dict[str, Any] = {
            "crc": crc,
            "holes": holes,
            "decode_s": work.decode_s,
            "encode_s": work.encode_s,
            "store_s": store_s,
        }
        try:
            reach("in_commit")
            if not holes:
                with self.line.use() as connection:
                    seq = batch_queries.commit_batch(connection, work.claim, **outcome)
                    reach("commit_unseen")
                    return seq
            with transaction(self.context.engine) as connection:
                seq = batch_queries.commit_batch(connection, work.claim, **outcome)
                if seq is not None:
                    bad = [(int(work.rows[place]), *work.holes[place]) for place in holes]
                    batch_queries.insert_quarantined(connection, self.rollout.id, bad)
                return seq
        except UnreachableError:
            # The answer was lost, the commit may have landed: ask, never redo blindly.
            with transaction(self.context.engine) as connection:
                return batch_queries.committed_seq(connection, work.claim)

    # -- what goes wrong ------------------------------------------------------------------------------------------

    def release(self, claim: Claim) -> None:
        """Give a batch back that nothing is wrong with; where the ledger is away, its lease runs out by itself."""
        self.leases.drop(claim)
        try:
            with transaction(self.context.engine) as connection:
                batch_queries.give_back(connection, claim, error=None, retry_in_s=0.0)
        except (HotrefreshError, DBAPIError) as error:
            self.abort(error)

    def fail(self, claim: Claim, error: HotrefreshError) -> None:
        """Give a failed batch back; a full or broken store, or the last attempt, ends the drain with the failure."""
        self.leases.drop(claim)
        try:
            with transaction(self.context.engine) as connection:
                batch_queries.give_back(connection, claim, error=str(error), retry_in_s=RETRY_IN_S)
        except (HotrefreshError, DBAPIError) as second:
            self.abort(second)
            return
        if isinstance(error, UnreachableError) or claim.attempt >= MAX_ATTEMPTS:
            self.abort(error)

    def abort(self, error: Exception) -> None:
        """End the drain; what is in flight is given back by the threads that hold it."""
        if self.result.failure is None:
            self.result.failure = (
                error
                if isinstance(error, HotrefreshError)
                else HotrefreshError(
                    f"{type(error).__name__}: {error}. This is a fault of hotrefresh; look at the worker's log."
                )
            )
        self.over.set()


def encode_or_bisect(
    encoder: Encoder, prepared: Sequence[Any]
) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Encode; where the encoder fails, halve until the items at fault are alone.

    Returns the vectors of the items that worked, in order, and the others by place with the encoder's message.
    """
    if not prepared:
        return np.zeros((0, encoder.dim), np.float32), {}
    try:
        return encoder.encode(prepared), {}
    except Exception as error:  # noqa: BLE001 — a user's encoder may raise anything
        if len(prepared) == 1:
            return np.zeros((0, encoder.dim), np.float32), {0: f"{type(error).__name__}: {error}"}
    half = len(prepared) // 2
    left, left_failed = encode_or_bisect(encoder, prepared[:half])
    right, right_failed = encode_or_bisect(encoder, prepared[half:])
    failed = left_failed | {half + place: message for place, message in right_failed.items()}
    return np.concatenate([left, right]), failed


def drain(
    context: Context,
    rollout_id: int,
    *,
    owner: str,
    stop: threading.Event | None = None,
    committed: Callable[[int], None] = lambda seq: None,
    encoder: Encoder | None = None,
) -> DrainResult:
    """Work on a rollout until nothing can be claimed, `stop` is set, or something fails that a retry will not mend.

    Args:
        owner: this worker's id, written into the leases.
        committed: called in the writer's thread after each commit, with its sequence number.
        encoder: used instead of the registered model's (benchmarks).
    """
    with transaction(context.engine) as connection:
        rollout = rollout_queries.rollout_by_id(connection, rollout_id)
        if rollout is None or rollout.state != "backfilling":
            return DrainResult()
        model = model_queries.model_by_id(connection, rollout.to_model_id)
    pipeline = Pipeline(
        context, rollout, encoder or context.encoder(model), owner, stop or threading.Event(), committed
    )
    started = time.monotonic()
    feeder = threading.Thread(target=pipeline.feed, name="feeder", daemon=True)
    writer = threading.Thread(target=pipeline.write, name="writer", daemon=True)
    with _no_long_collections(), pipeline.leases:
        feeder.start()
        writer.start()
        try:
            pipeline.encode()
        finally:
            pipeline.encoded.put(None)
            writer.join()
            pipeline.over.set()
            feeder.join()
            pipeline.decoders.shutdown()
    pipeline.result.wall_s = time.monotonic() - started
    return pipeline.result


@contextmanager
def _no_long_collections() -> Iterator[None]:
    """Leave what lives already out of garbage collection; the drain's own garbage is collected as ever.

    With torch loaded that is a quarter of a million objects: each full collection stops every thread for 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
