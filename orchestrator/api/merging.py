"""A server that holds no rows: it encodes a query once, asks every shard with its vector, and merges what they answer.

What an answer holds to:

- All of it is of one path (model and query adapter) and one rollout that serves: others are never merged. While some shards
  have switched and others have not, the query waits for them; at most SETTLE_S.
- It is of one place of the log. Shards behind are told the place to reach and asked again. Where commits come faster than
  that (AGAIN times), each hit is still of a stored vector in the version that the hit names; the answer then names the
  place of every shard, and the lowest as its own.
- It is of all shards: one that does not answer, or refuses, fails the search.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from orchestrator.api.guard import token_of
from orchestrator.api.log import log
from orchestrator.api.replicas import Replicas, ServedReplica, no_such_item
from orchestrator.api.shard_clients import Document, Shards, not_a_whole
from orchestrator.context import Context
from orchestrator.core.merge import NO_ROW, NO_SCORE, merge_top_k
from orchestrator.errors import HotrefreshError, UnreachableError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow, ModelRow
from orchestrator.serving.answers import Answer, Hit, checked_queries, stale
from orchestrator.serving.filters import Where, checked, no_such_attribute
from orchestrator.serving.queries import QueryPath, query_path

# How often the shards behind are asked again before their several places are answered from.
AGAIN = 5
# How long a query waits for shards that have not switched to the model that others serve.
SETTLE_S = 10.0
PAUSE_S = 0.02
# How often every shard is asked where it stands, beside what searches tell.
LOOK_S = 0.5


@dataclass(frozen=True)
class _Place:
    """Where the furthest shard stands that was heard of."""

    seq: int
    path: QueryPath
    rollout_id: int | None


class MergedReplica(ServedReplica):
    """What a search asks of a replica, answered by shards: there are no rows here, and no log is followed."""

    def __init__(self, context: Context, gallery: GalleryRow, shards: Shards) -> None:
        # Not the base's: that loads the gallery.
        self._context = context
        self.gallery = gallery
        self._shards = shards
        self._path = f"/shard/{quote(gallery.name, safe='')}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._moving = threading.Lock()
        self._furthest: _Place | None = None
        self._models = {}
        self._refused: str | None = None
        self.error = None
        self.seq = 0
        self.catch_up()

    @property
    def _now(self) -> _Place:
        assert self._furthest is not None, "the first look has set it"
        return self._furthest

    @property
    def model(self) -> ModelRow:
        return self._now.path.model

    @property
    def path(self) -> QueryPath:
        return self._now.path

    @property
    def refused(self) -> str | None:
        return self._refused

    @property
    def rollout_id(self) -> int | None:
        return self._now.rollout_id

    @property
    def asked(self) -> tuple[QueryPath, int | None, frozenset[int]]:
        """As of a replica; of the versions all that the shards may hold."""
        now = self._now
        with transaction(self._context.engine) as connection:
            effective = rollout_queries.effective_rollouts(connection, self.gallery.id)
        return now.path, now.rollout_id, frozenset(each.id for each in effective if each.how.holds_vectors)

    @property
    def snapshot_seq(self) -> int | None:
        return None  # there are no rows to keep

    def catch_up(self) -> int:
        """Ask every shard where it stands; returns how many entries of the log the last of them went on.

        Raises:
            UnreachableError: a shard does not answer, or they are not the shards of one whole.
            HotrefreshError: a shard cannot follow its log.
        """
        places = self._shards.ask(self._path)
        self._check(places)
        self._hear(max(places, key=_seq))
        self._refused = next((each["refused"] for each in places if each["refused"]), None)
        for each in places:
            if each["error"]:
                raise HotrefreshError(f"shard {each['shard']}: {each['error']}")
        lowest = min(map(_seq, places))
        gone, self.seq = lowest - self.seq, lowest
        return gone

    def _check(self, places: Sequence[Document]) -> None:
        """That they are the shards of one whole, of one ledger."""
        wrong = not_a_whole([client.url for client in self._shards.clients], places)
        other = next((each for each in places if each["gallery"] != self.gallery.id), None)
        if wrong is None and other is not None:
            wrong = f"shard {other['shard']} knows another gallery by the name {self.gallery.name!r}: it has another ledger."
        if wrong is not None:
            raise UnreachableError(wrong)

    def _hear(self, place: Document) -> None:
        """Know what the furthest shard serves; its model is loaded before a query is encoded with it."""
        self._models.update({int(rollout): name for rollout, name in place["models"].items()})
        now = self._furthest
        ids, rollout_id = tuple(place["path"]), place["rollout"]
        if now is not None and (
            now.seq >= place["seq"] or (now.path.ids, now.rollout_id) == (ids, rollout_id)
        ):
            return
        with self._moving:
            now = self._furthest
            if now is not None and now.seq >= place["seq"]:
                return
            path = now.path if now is not None and now.path.ids == ids else self._loaded(*ids)
            self._furthest = _Place(place["seq"], path, rollout_id)

    def _loaded(self, model_id: int, adapter_id: int | None) -> QueryPath:
        with transaction(self._context.engine) as connection:
            path = query_path(connection, model_id, None)
            adapter = None if adapter_id is None else model_queries.adapter_by_id(connection, adapter_id)
        self._context.encoder(path.embedder)  # adapter and codec are applied by the shards
        return replace(path, adapter=adapter)

    def item(self, key: str) -> ItemRow:
        """The item of a key, of the shard that holds it.

        Raises:
            NotFoundError: there is none.
            UnreachableError: a shard does not answer.
        """
        for each in self._shards.ask(self._path + "/item", {"key": key}):
            if each["item"] is not None:
                return ItemRow(**each["item"])
        raise no_such_item(self.gallery.name, key)

    def search_vectors(
        self,
        vectors: npt.NDArray[np.float32],
        k: int = 10,
        where: Where | None = None,
        *,
        path_ids: tuple[int, int | None] | None = None,
        contents: Sequence[Any] | None = None,
    ) -> list[Answer]:
        """As a replica that holds all rows; no answer is guarded, and `contents` is not read.

        Raises:
            UnreachableError: a shard does not answer, or serves another model for SETTLE_S.
            Otherwise as `Replica.search_vectors`.
        """
        path = self.path
        if path_ids is not None and path_ids != path.ids:
            raise stale(path)
        vectors = checked_queries(vectors, path.embedder)
        wanted = None if where is None else {name: list(of) for name, of in checked(where).items()}
        body = {
            "vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(),
            "dim": vectors.shape[1],
            "path": path.ids,
            "k": k,
            "where": wanted or None,
        }
        parts = self._agreed(path, body)
        if wanted:
            _check_attributes(wanted, parts)
        return self._merged(path.model.name, parts, len(vectors), k)

    def _agreed(self, path: QueryPath, body: Document) -> list[Document]:
        """The answers of all shards, of one path and rollout, and of one place of the log where that can be had.

        Raises:
            StalePathError: the furthest shard serves another path.
        """
        deadline, tries = time.monotonic() + SETTLE_S, 0
        parts = self._shards.ask(self._path + "/search", body)
        while True:
            places = [part["place"] for part in parts]
            self._check(places)
            furthest = max(places, key=_seq)
            self._hear(furthest)
            if tuple(furthest["path"]) != path.ids:
                if self.path.ids == path.ids:  # a shard that fell behind what was heard of before
                    self._wait(deadline, furthest)
                else:
                    raise stale(self.path)
            late = [
                at
                for at, place in enumerate(places)
                if place["seq"] < furthest["seq"] or "stale" in parts[at]
            ]
            unfit = [
                at for at in late
                if "stale" in parts[at] or places[at]["rollout"] != furthest["rollout"]
            ]  # fmt: skip
            if not late or (tries >= AGAIN and not unfit):
                return parts
            tries += 1
            if tries > AGAIN:
                self._wait(deadline, places[unfit[0]])
            again = self._shards.ask(self._path + "/search", body | {"at_least": furthest["seq"]}, late)
            for at, part in zip(late, again, strict=True):
                parts[at] = part

    def _wait(self, deadline: float, place: Document) -> None:
        """A moment, for a shard that serves another model or rollout than the others.

        Raises:
            UnreachableError: it took too long.
        """
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"shard {place['shard']} does not serve what the others do since {SETTLE_S:g} s: it stands at place "
                f"{place['seq']} of the log of {self.gallery.name!r}; its /readyz says more."
            )
        time.sleep(PAUSE_S)

    def _merged(self, model: str, parts: Sequence[Document], queries: int, k: int) -> list[Answer]:
        seqs = tuple(part["place"]["seq"] for part in parts)
        items = sum(part["items"] for part in parts)
        covered = sum(round(part["coverage_ratio"] * part["items"]) for part in parts)
        lists = [_lists(part["hits"], queries) for part in parts]
        scores, rows = merge_top_k([scores for scores, _ in lists], [rows for _, rows in lists], k)
        answers = []
        for q in range(queries):
            hits = {hit[0]: hit for part in parts for hit in part["hits"][q]}
            best = []
            for score, place in zip(scores[q], rows[q], strict=True):
                if place >= 0:
                    row, key, uri, label, _, rollout_id, attributes = hits[int(place)]
                    best.append(Hit(row, key, uri, label, float(score), rollout_id, attributes))
            answers.append(
                Answer(
                    tuple(best),
                    model,
                    min(seqs),
                    covered / items if items else 0.0,
                    parts[0]["place"]["rollout"],
                    items=items,
                    seqs=None if len(set(seqs)) == 1 else seqs,
                )
            )
        return answers

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)


class MergedReplicas(Replicas):
    """Every embedded gallery, as shards hold it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._shards = open_shards(context)

    def _load(self, gallery: GalleryRow) -> ServedReplica:
        replica = MergedReplica(self._context, gallery, self._shards)
        replica.follow(LOOK_S)
        log("replica.merged", gallery=gallery.name, seq=replica.seq, model=replica.model.name)
        return replica

    def missing(self) -> dict[str, str]:
        """As of a server that holds the rows; also galleries of which a shard does not answer: no search does without it."""
        away = {name: str(error) for name, error in super().faults().items() if _away(error)}
        return super().missing() | away

    def faults(self) -> dict[str, HotrefreshError]:
        """What keeps shards from following, by gallery."""
        return {name: error for name, error in super().faults().items() if not _away(error)}

    def close(self) -> None:
        super().close()
        self._shards.close()


def open_shards(context: Context) -> Shards:
    """The shards that the settings name, asked with the first of our own tokens."""
    return Shards(context.settings.merge, token_of(context.settings))


def check_shards(context: Context) -> None:
    """Ask each shard which it is, before anything is served; one that is not there yet may come later.

    Raises:
        UsageError: those that answer are not the shards of one whole.
    """
    shards = open_shards(context)
    try:
        for away in shards.check():
            log("shard.away", level="warning", message=away)
    finally:
        shards.close()


def _away(error: HotrefreshError) -> bool:
    return isinstance(error, UnreachableError)


def _seq(place: Document) -> int:
    return int(place["seq"])


def _check_attributes(where: Mapping[str, Sequence[str]], parts: Sequence[Document]) -> None:
    """Refuse an attribute that no item of any shard has.

    Raises:
        UsageError: there is one.
    """
    for name in where:
        if all(name in part.get("unknown", ()) for part in parts):
            raise no_such_attribute(name, sorted({each for part in parts for each in part["attributes"]}))


def _lists(
    hits: Sequence[Sequence[Sequence[Any]]], queries: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """One shard's scores and rows, (queries, the longest of its lists)."""
    width = max((len(each) for each in hits), default=0)
    scores = np.full((queries, width), NO_SCORE, np.float32)
    rows = np.full((queries, width), NO_ROW, np.int64)
    for q, each in enumerate(hits):
        scores[q, : len(each)] = [hit[4] for hit in each]
        rows[q, : len(each)] = [hit[0] for hit in each]
    return scores, rows
