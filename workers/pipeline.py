"""The drain pipeline: claim → decode → encode → extent → commit, in three threads so that the encoder never waits.

    feeder   claims the next batch and decodes its items while the encoder is busy with the one before
    encoder  (the calling thread) encodes and does nothing else
    writer   checks the vectors, writes the extent and commits while the encoder is busy with the next one

Every batch in flight has a lease that `LeaseKeeper` renews; a refused renewal or commit means somebody else has the batch,
and it is dropped. Bytes lie under the fence of their claim, so a worker that comes back from the dead can only write where
nobody reads, and its commit is refused.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from models.datasets import read_item
from models.encoders import Encoder
from models.errors import ItemError
from orchestrator.context import Context
from orchestrator.core.canary import canary_places
from orchestrator.errors import ArtifactError, HotrefreshError, UnreachableError
from orchestrator.failpoints import reach
from orchestrator.ledger.database import Line, transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import Claim, Committed, RolloutRow
from orchestrator.service import poison
from orchestrator.serving.matrix import extents_of, plan_rows, rows_of_ranks, unfinished_versions
from workers.control import WORKABLE, Control
from workers.encode import Encoded, FittingSize, PlacedEncoder, encode_halving
from workers.encode_errors import end_if_sticky, permanent
from workers.leases import LeaseKeeper
from workers.soundness import check_places, sound_answer, sound_norms
from workers.work import DrainResult, Work

# Items that a decoding thread takes at once: a future for each would cost more than many items do. At least so many, and
# for large batches as many as give each thread a few turns, so that none waits long for the slowest.
DECODE_TOGETHER = 32
DECODE_TURNS = 8
# A batch whose next attempt is due within this time is waited for.
WAIT_FOR_RETRY_S = 3.0
# Revisions of the plan whose rows are kept at hand, 4 bytes an item each.
PLANS_KEPT = 2
# How often a commit is asked again because ranks were superseded while it was on its way.
REVISIONS = 10


@dataclass
class Pipeline:
    """The parts that the three threads share for one rollout."""

    context: Context
    rollout: RolloutRow
    encoder: Encoder | PlacedEncoder
    owner: str
    stop: threading.Event
    hurry: threading.Event
    claim_until: float
    committed: Callable[[int], None]
    result: DrainResult = field(default_factory=DrainResult)

    def __post_init__(self) -> None:
        self.plans: dict[int, npt.NDArray[np.uint32]] = {}  # revision → the row of every rank
        with self.context.engine.connect() as connection:
            self.extents = extents_of(connection, self.rollout)
            self.older = unfinished_versions(connection, self.rollout)
        self.lease_s = float(self.rollout.config.get("lease_s", self.context.settings.lease_s))
        self.fitting = self.encoder.fitting if isinstance(self.encoder, PlacedEncoder) else FittingSize()
        self.line = Line(self.context.engine)
        self.leases = LeaseKeeper(self.context.engine, self.lease_s)
        self.decoders = ThreadPoolExecutor(self.context.settings.decode_threads, thread_name_prefix="decode")
        self.ready: queue.Queue[Work | None] = queue.Queue(maxsize=1)
        self.encoded: queue.Queue[Work | None] = queue.Queue(maxsize=1)
        self.over = threading.Event()
        self.commit_s: float | None = None
        """What the last commit took, until the next one writes it down: no transaction is added for it."""
        self.control = Control(self.context, self.rollout, self.hurry, self.over.set)

    def run(self) -> None:
        """Feed, encode and write until the feeder finds nothing more to claim, and all that is held is done."""
        feeder = threading.Thread(target=self.feed, name="feeder", daemon=True)
        writer = threading.Thread(target=self.write, name="writer", daemon=True)
        with self.leases, self.control:
            feeder.start()
            writer.start()
            try:
                self.encode()
            finally:
                self.encoded.put(None)
                writer.join()
                self.over.set()
                feeder.join()
                self.decoders.shutdown()

    # -- feeder ---------------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Claim and decode until there is nothing to claim, or the drain is asked to stop."""
        refusals = 0
        try:
            while not self.stop.is_set() and not self.over.is_set() and time.monotonic() < self.claim_until:
                asked = time.monotonic()
                with transaction(self.context.engine) as connection:
                    claim = batch_queries.claim_batch(connection, self.rollout.id, self.owner, self.lease_s)
                    reach("in_claim")
                if claim is None:
                    # Asked twice: a batch may be given back between the claim and the look at what is due.
                    refusals = 0 if self._more_may_come() else refusals + 1
                    if refusals < 2:
                        continue
                    break
                refusals = 0
                if claim.attempt > poison.MAX_ATTEMPTS:
                    self.result.quarantined += poison.isolate(self.context, claim)
                    continue
                self.leases.hold(claim, asked)
                reach("claimed")
                try:
                    work = self.prepare(claim)
                    if isinstance(self.encoder, PlacedEncoder):
                        work.prepared = self.encoder.stage(work.prepared)
                except Exception as error:  # noqa: BLE001 — every fault of a batch is counted and told
                    self.fail(claim, error)
                    continue
                reach("decoded")
                self._hand_over(work)
        except Exception as error:  # noqa: BLE001 — whatever it is, the pipeline must end and say so
            self.abort(error)
        finally:
            self._put_end(self.ready)

    def _more_may_come(self) -> bool:
        """Wait a moment where a batch is due again soon, or ours may still fail; False: there is nothing to wait for."""
        if self.leases.wait_for_drop(0.1):
            return True
        with transaction(self.context.engine) as connection:
            wait_s = batch_queries.next_due_s(connection, self.rollout.id, pending_only=True)
        if not wait_s or wait_s > WAIT_FOR_RETRY_S:
            return False
        self.over.wait(min(wait_s, 0.2))
        return True

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
        with transaction(self.context.engine) as connection:
            rows = self._rows_of(connection, claim)
            uris = gallery_queries.uris_of_rows(
                connection, self.rollout.gallery_id, rows.tolist(), self.encoder.modality
            )
        prepared, places, holes = [], [], {}
        for at, outcome in enumerate(self.read_items(uris)):
            if isinstance(outcome, ItemError):
                holes[at] = (outcome.reason, str(outcome))
            else:
                prepared.append(outcome)
                places.append(at)
        return Work(claim, rows, prepared, places, holes, time.monotonic() - started)

    def read_items(self, uris: Sequence[str | None]) -> Iterator[Any]:
        """Of each, what `Encoder.preprocess` makes of it, or the ItemError that says why it is nothing."""
        together = max(DECODE_TOGETHER, len(uris) // (DECODE_TURNS * self.context.settings.decode_threads))
        slices = [uris[at : at + together] for at in range(0, len(uris), together)]
        return chain.from_iterable(self.decoders.map(self._prepare_items, slices))

    def _rows_of(self, connection: Connection, claim: Claim) -> npt.NDArray[np.int64]:
        """The rows of a claimed batch, by the revision of the plan that its claim names: none is read twice."""
        revision = claim.plan_revision
        if claim.first_rank >= self.rollout.plan_items:
            return rows_of_ranks(connection, self.rollout, claim.first_rank, claim.n, revision)
        if revision not in self.plans:
            if len(self.plans) == PLANS_KEPT:
                self.plans.pop(min(self.plans))
            self.plans[revision] = plan_rows(connection, self.rollout, revision)
        return np.asarray(self.plans[revision][claim.first_rank : claim.first_rank + claim.n], np.int64)

    def _prepare_items(self, uris: Sequence[str | None]) -> list[Any]:
        return [self._prepare_item(uri) for uri in uris]

    def _prepare_item(self, uri: str | None) -> Any:
        if uri is None:
            return ItemError("missing", "the gallery has no item at this row")
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
            try:
                reach("mid_encode")
                done = encode_halving(self.encoder, work.prepared, self.fitting)
                self._encode_canaries(work, done)
            except Exception as error:  # noqa: BLE001 — a user's encoder may raise anything
                self.fail(work.claim, error)
                continue
            work.take(done)
            work.encode_s = time.monotonic() - started
            self.result.encoder_busy_s += work.encode_s
            self.encoded.put(work)
            self.control.rest(work.encode_s, self.over)

    def _encode_canaries(self, work: Work, done: Encoded) -> None:
        """Encode one item a second time, alone: a batch whose rows changed places has good norms and a good checksum."""
        if done.failed or len(work.prepared) < 2:
            return
        work.canaries = canary_places(work.claim.first_rank, work.claim.fence, len(work.prepared), count=1)
        work.again = np.concatenate([self.encoder.encode(work.prepared[at : at + 1]) for at in work.canaries])

    # -- writer ---------------------------------------------------------------------------------------------------

    def vectors_of(self, work: Work) -> npt.NDArray[np.float32]:
        """The batch's vectors in rank order, zero at holes, which are noted: (n, dim) float32."""
        vectors = np.zeros((work.claim.n, self.encoder.dim), np.float32)
        if work.places:
            vectors[work.places] = sound_answer(work.encoded, len(work.places), self.encoder.dim)
            check_places(work, coded=self.extents.format.codes is not None)
        for place in np.flatnonzero(~sound_norms(vectors)):
            if int(place) not in work.holes:
                with np.errstate(all="ignore"):
                    norm = np.linalg.norm(vectors[place])
                vectors[place] = 0
                work.holes[int(place)] = ("bad_vector", f"the encoder returned a vector of norm {norm}")
        return vectors

    def write(self) -> None:
        """Write extents and commit until the encoder ends."""
        while (work := self.encoded.get()) is not None:
            if self.over.is_set():
                self.release(work.claim)
                continue
            try:
                self.store_and_commit(work)
            except Exception as error:  # noqa: BLE001 — every fault of a batch is counted and told
                self.fail(work.claim, error)
        self.extents.close()
        self.line.close()

    def store_and_commit(self, work: Work) -> None:
        """Bytes first, durable; then one short transaction that flips the batch's row."""
        if not self.leases.holds(work.claim):
            self._refused(work.claim)
            return
        vectors = self.vectors_of(work)
        started = time.monotonic()
        reach("before_write")
        crc = None
        if len(work.holes) < work.claim.n:
            crc = self.extents.write(work.claim.first_rank, work.claim.fence, vectors)
        done = self._commit(work, crc, time.monotonic() - started)
        reach("committed")
        if done is None:
            self._refused(work.claim)
            return
        self.leases.drop(work.claim)
        quarantined = len(set(work.holes) - set(done.superseded))
        self.result.batches += 1
        self.result.items += work.claim.n - quarantined
        self.result.quarantined += quarantined
        self.committed(done.seq)

    def _commit(self, work: Work, crc: int | None, store_s: float) -> Committed | None:
        times = {"decode_s": work.decode_s, "encode_s": work.encode_s, "store_s": store_s}
        if self.commit_s is not None:
            times["previous_commit_s"] = self.commit_s
        for _ in range(REVISIONS):
            started = time.monotonic()
            try:
                reach("in_commit")
                done = self._commit_once(work, crc, times)
            except (UnreachableError, OSError):
                self.commit_s = None  # it may be written down
                # The answer was lost, the commit may have landed: ask, never redo blindly.
                with transaction(self.context.engine) as connection:
                    return batch_queries.reread_commit(connection, work.claim)
            if done is not None:
                self.commit_s = time.monotonic() - started
                return done
            if not self._learn_revision(work):
                return None
        return None

    def _commit_once(self, work: Work, crc: int | None, times: dict[str, float]) -> Committed | None:
        holes = sorted(work.holes)
        replaced = self._replaced(work)
        if not holes and not replaced:
            with self.line.use() as connection:
                done = batch_queries.commit_batch(connection, work.claim, crc=crc, holes=holes, **times)
                reach("commit_unseen")
                return done
        with transaction(self.context.engine) as connection:
            done = batch_queries.commit_batch(connection, work.claim, crc=crc, holes=holes, **times)
            if done is not None:
                rollout_queries.add_replaced(connection, self.rollout.id, replaced)
                bad = [place for place in holes if place not in done.superseded]
                if bad:
                    items = [(int(work.rows[place]), *work.holes[place]) for place in bad]
                    poison.quarantine(connection, self.rollout, work.claim, done, items, self.owner)
                    poison.trip_breaker(connection, self.rollout, self.context.actor)
        reach("commit_unseen")
        return done

    def _learn_revision(self, work: Work) -> bool:
        """Whether a commit was refused only because ranks were superseded since the claim; it is asked again then."""
        with transaction(self.context.engine) as connection:
            row = rollout_queries.rollout_by_id(connection, self.rollout.id)
        if row is None or row.generation != work.claim.generation or row.state not in WORKABLE:
            return False
        if row.late_revision == work.claim.late_revision:
            return False
        work.claim = replace(work.claim, late_revision=row.late_revision)
        return True

    def _replaced(self, work: Work) -> dict[int, int]:
        """How many of the batch's rows older, unfinished rollouts hold: rollout → rows. Empty but for three versions."""
        if self.older is None or work.claim.first_rank >= self.rollout.plan_items:
            return {}
        held, counts = np.unique(self.older[work.rows], return_counts=True)
        return {int(r): int(c) for r, c in zip(held, counts, strict=True) if r}

    # -- what goes wrong ------------------------------------------------------------------------------------------

    def _refused(self, claim: Claim) -> None:
        """The ledger, or our own clock, says that the batch is no longer ours to commit; let go of what may be left."""
        self.result.refused += 1
        self.release(claim)

    def release(self, claim: Claim) -> None:
        """Give a batch back that nothing is wrong with; where the ledger is away, its lease runs out by itself."""
        try:
            with transaction(self.context.engine) as connection:
                batch_queries.give_back(connection, claim)
        except (HotrefreshError, DBAPIError) as error:
            self.abort(error)
        finally:
            self.leases.drop(claim)  # not before: the feeder would think that all is done

    def fail(self, claim: Claim, error: Exception) -> None:
        """A batch could not be done. What is not its fault ends the drain; all else counts, and a retry is due later.

        Where the device is lost to this process, the process ends: its lease runs out, and another one takes the batch.
        """
        end_if_sticky(error)
        if isinstance(error, (UnreachableError, ArtifactError)):
            self.abort(error)
            self.release(claim)
            return
        self.result.failed += 1
        code = error.code if isinstance(error, HotrefreshError) else type(error).__name__
        try:
            if poison.batch_failed(self.context, claim, str(error), code, hopeless=permanent(error)):
                self.over.set()
        except (HotrefreshError, DBAPIError) as second:
            self.abort(second)
        finally:
            self.leases.drop(claim)

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
