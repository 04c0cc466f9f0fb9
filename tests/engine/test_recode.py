"""Floats become codes and codes other codes, through real workers: every answer against brute force of what each row is."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.datasets import read_item
from orchestrator.api import restart
from orchestrator.core.calibration import IDENTITY, Calibration
from orchestrator.core.metrics import Relevance
from orchestrator.core.shards import Shard
from orchestrator.errors import UsageError
from orchestrator.index.codes import Codes
from orchestrator.index.faiss_flat import FaissFlat
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, items, rollouts
from orchestrator.service.codecs import TrainCodecRequest, train_codec
from orchestrator.service.invariants import check_invariants
from orchestrator.service.plan_preview import preview
from orchestrator.service.start import StartRequest
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.floats import StoredFloats
from orchestrator.serving.matrix import load_matrix, plan_rows
from orchestrator.serving.old_system import OldSystem
from orchestrator.serving.replica import Replica
from orchestrator.serving.snapshots import laid_out
from tests.engine import platform
from tests.engine.test_living import pictures
from tests.engine.test_restart import folder, put, restarted, serve, write
from tests.engine.test_strategies import believe
from tests.engine.test_supersede import work_some
from workers.drain import drain
from workers.recode import Coder, RecodePipeline

N, DIM, K = platform.CLASSES * platform.PER_CLASS, 32, 10


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"batch_size": 12})


@pytest.fixture
def world(context, tmp_path):
    """Gallery `pics` of floats by `old`, and two codecs for them: `signs`, one bit a dimension, and `finer`, two."""
    platform.embedded_gallery(context, tmp_path)
    for name, bits, seed in (("signs", 1, 0), ("finer", 2, 1)):
        # Not centred: a random network's embeddings crowd, and codes that turn answers are wanted here.
        request = TrainCodecRequest(name, "pics", bits=bits, seed=seed, options={"crowded": 1.0})
        train_codec(context, request, lambda done, total: None)
    believe(context, "old", "signs")
    believe(context, "signs", "finer")
    return context


@pytest.fixture
def said(monkeypatch):
    """What was logged about snapshots: (event, part, message)."""
    lines = []
    monkeypatch.setattr(
        restart,
        "log",
        lambda event, **words: lines.append((event, words.get("part"), words.get("message", ""))),
    )
    return lines


SIGNS, FINER = Calibration(0.7, 0.25), Calibration(1.3, -0.1)


@pytest.fixture
def calibrated_world(world):
    """The same, where codes are searched on the scale of the floats."""
    for (old, new), fitted in {("old", "signs"): SIGNS, ("signs", "finer"): FINER}.items():
        believe(world, old, new, measured={"calibration": fitted.stored() | {"on": True}})
    return world


class Oracle:
    """The embeddings that the base model makes of items and queries, and every score that follows from them."""

    def __init__(self, context):
        self.context = context
        with context.engine.connect() as connection:
            self.gallery = gallery_queries.gallery_by_name(connection, "pics")
            known = gallery_queries.items_of_rows(connection, self.gallery.id, range(self.gallery.n_items))
            asked = load_query_set(
                connection, gallery_queries.query_set_by_name(connection, self.gallery.id, "asked")
            )
            names = ("old", "kin", "signs", "finer", "newer")
            self.models = {name: model_queries.model_by_name(connection, name) for name in names}
        self.base = {"old": "old", "signs": "old", "finer": "old", "newer": "kin"}
        self.keys = {item.row: item.key for item in known}
        self.by, self.asked = {}, {}
        for name in ("old", "kin"):
            encoder = context.encoder(self.models[name])
            self.by[name] = np.zeros((self.gallery.n_items, DIM), np.float32)
            self.by[name][[item.row for item in known]] = encode_uris(encoder, [item.uri for item in known])[
                0
            ]
            self.asked[name] = encode_uris(encoder, asked.uris)[0]
        self.floats, self.queries = self.by["old"], self.asked["old"]
        self.picture = asked.uris[0]
        self.relevance: Relevance = asked.relevance

    def of(self, name, floats):
        codec = self.context.codec(self.models[name])
        return codec.shape.unit(codec.encode(floats))

    def scores(self, model, version, maps=None):
        """(Q, n) of queries by a model: codes with codes, floats with floats, -inf where there is nothing.

        `maps`: model -> how scores of its vectors are mapped, where they are.
        """
        with self.context.engine.connect() as connection:
            named = {
                row.id: model_queries.model_by_id(connection, row.to_model_id).name
                for row in rollout_queries.list_rollouts(connection, self.gallery.id)
            }
        found = np.full((len(self.queries), len(version)), -np.inf, np.float32)
        for each in set(version.tolist()) - {0}:
            rows = version == each
            if named[each] == "old":
                found[:, rows] = self.queries @ self.floats[rows].T
            else:
                asked = self.of(model, self.asked[self.base[model]])
                raw = asked @ self.of(named[each], self.by[self.base[named[each]]][rows]).T
                found[:, rows] = (maps or {}).get(named[each], IDENTITY).apply(raw)
        return found

    def assert_answers(self, replica, model, maps=None):
        """Everything that a replica says, at the place of the log where it is."""
        replica.catch_up()
        assert replica.model.name == model
        version = replica.snapshot()[1]
        wanted = self.scores(model, version, maps) if model != "old" else self.queries @ self.floats.T
        for query, answer in enumerate(replica.search_vectors(self.asked[self.base[model]], K)):
            rows = [hit.row for hit in answer.hits]
            best = np.sort(wanted[query])[::-1][:K]
            np.testing.assert_allclose([hit.score for hit in answer.hits], best, atol=2e-6)
            np.testing.assert_allclose(wanted[query, rows], best, atol=2e-6)
            assert [hit.rollout_id for hit in answer.hits] == version[rows].tolist()
        (one,) = replica.search([read_item(self.picture)], K)
        assert [hit.row for hit in one.hits] == [
            hit.row for hit in replica.search_vectors(self.asked[self.base[model]][:1], K)[0].hits
        ]
        return version

    def assert_flips(self, row, model, *, before):
        """Each stage of the flip ledger at k = 1, against brute force. `before`: (Q, n) scores of the old system."""
        with self.context.engine.connect() as connection:
            stages = read_view(connection, "flip_summary", limit=10_000, rollout=row.id)
            stages = sorted(stages, key=lambda each: each["seq"])
            stages = [*stages[:: len(stages) // 5], stages[-1]]
            versions = {
                s["seq"]: load_matrix(connection, self.gallery.id, up_to=s["seq"]).version for s in stages
            }
            flips = read_view(connection, "flip_items", limit=10_000, rollout=row.id)
        counted = self.relevance.answerable
        was = self.relevance.hits(first(before))[counted]
        assert len(stages) > 4
        for stage in stages:
            now = self.relevance.hits(first(self.scores(model, versions[stage["seq"]])))[counted]
            assert stage["negative_flips"] == int((was & ~now).sum()), stage["seq"]
            assert stage["positive_flips"] == int((~was & now).sum()), stage["seq"]
        negative = [flip for flip in flips if flip["kind"] == "negative"]
        assert {flip["cause"] for flip in negative} <= {"mixed_stage", "quantisation"}
        return negative


def first(scores):
    return scores.argmax(axis=1)[:, None]


def fresh(context, replica):
    """A replica that is loaded anew holds what this one holds."""
    with Replica(context, replica.gallery) as again:
        (vectors, version, seq), (wanted, other, at) = again.snapshot(), replica.snapshot()
    assert seq == at
    np.testing.assert_array_equal(version, other)
    np.testing.assert_array_equal(vectors, wanted)


def finalized(context, row):
    assert platform.work(context, row.id).state == "finalizable"
    return finish.finalize(context, row.id)


def reclaimed(context, row):
    """What is given back, and which floats are kept, when a rollout cannot be rolled back any more."""
    with context.engine.begin() as connection:
        rollout_queries.set_config(connection, row.id, {"rollback_window_s": 0})
    found = finish.reclaim(context, "pics")
    return tuple(sorted(found.rollouts, reverse=True)), found.kept_floats


def test_floats_become_codes_and_codes_finer_ones_without_an_item_being_read(world, tmp_path):
    oracle = Oracle(world)
    shutil.move(tmp_path / "pictures", tmp_path / "away")
    before = oracle.queries @ oracle.floats.T
    with Replica(world, oracle.gallery) as replica, Replica(world, oracle.gallery, "codes") as bits:
        assert isinstance(bits._served.index, FaissFlat), "there are no codes yet"
        row = platform.start(world, "signs")
        assert (row.strategy, row.order_name) == ("recode", "flipped_bits")
        oracle.assert_answers(replica, "signs")
        oracle.assert_answers(bits, "signs")
        advance.advance(world, row.id)
        for batches in (1, 3):
            work_some(world, row.id, batches)
            oracle.assert_answers(bits, "signs")
            version = oracle.assert_answers(replica, "signs")
            assert 0 < (version == row.id).sum() < N
            fresh(world, replica)
        assert replica.snapshot()[0].shape == (N, 2 * DIM)
        finalized(world, row)
        assert (oracle.assert_answers(replica, "signs") == row.id).all()
        assert (oracle.assert_answers(bits, "signs") == row.id).all()
        assert isinstance(bits._served.index, Codes)
        assert replica.snapshot()[0].shape == (N, DIM), "no floats are left"
        fresh(world, replica)
        negative = oracle.assert_flips(row, "signs", before=before)
        assert {f["cause"] for f in negative if f["healed_seq"] is None} == {"quantisation"}
        assert (Path(row.extent_uri) / "vectors.bits").stat().st_size == N * DIM / 8

        assert reclaimed(world, row) == ((), (1,)), "codes stand on the floats"
        of_codes = oracle.scores("signs", version := replica.snapshot()[1])
        half = platform.start(world, "finer")
        advance.advance(world, half.id)
        work_some(world, half.id, 4)
        oracle.assert_answers(replica, "finer")
        oracle.assert_answers(bits, "finer")
        rollouts.rollback(world, half.id)
        rollouts.acknowledge(world, half.id)
        np.testing.assert_array_equal(oracle.assert_answers(replica, "signs"), version)
        np.testing.assert_array_equal(oracle.assert_answers(bits, "signs"), version)
        fresh(world, replica)

        again = platform.start(world, "finer")
        finalized(world, again)
        assert (oracle.assert_answers(replica, "finer") == again.id).all()
        assert (oracle.assert_answers(bits, "finer") == again.id).all()
        fresh(world, replica)
        oracle.assert_flips(again, "finer", before=of_codes)
    assert (Path(again.extent_uri) / "vectors.bits").stat().st_size == N * DIM * 2 / 8
    assert reclaimed(world, again) == ((half.id, row.id), (1,)), "codes stand on the floats"
    assert [each for each in check_invariants(world) if not each.ok] == []


def test_answers_of_codes_are_compared_again_by_the_floats_that_are_stored(world, tmp_path):
    oracle = Oracle(world)
    by_floats = oracle.queries @ oracle.floats.T
    with Replica(world, oracle.gallery, "codes", rerank=N) as replica:
        row = platform.start(world, "signs")
        advance.advance(world, row.id)
        for batches in (3, 100):
            work_some(world, row.id, batches)
            replica.catch_up()
            for query, answer in enumerate(replica.search_vectors(oracle.queries, K)):
                best = np.argsort(-by_floats[query], kind="stable")[:K]
                np.testing.assert_allclose(
                    [hit.score for hit in answer.hits], by_floats[query, best], atol=2e-6
                )
                assert [hit.rollout_id for hit in answer.hits] == replica.snapshot()[1][
                    [hit.row for hit in answer.hits]
                ].tolist()
        finalized(world, row)
        replica.catch_up()
        # What a changed item's floats were is not what it is now: its code is all that there is.
        row_of = {key: at for at, key in oracle.keys.items()}
        changed = row_of["class-03/0.png"]
        (seen,) = replica.search_vectors(oracle.floats[[changed]], 1)[0].hits
        assert (seen.row, round(seen.score, 5)) == (changed, 1.0)
        items.update_items(world, "pics", pictures(tmp_path / "more", ["class-03/0.png"], seed=3))
        drain(world, row.id, owner="test")
        replica.catch_up()
        found = {hit.row: hit.score for hit in replica.search_vectors(oracle.floats[[changed]], N)[0].hits}
        now = Oracle(world)
        codes = now.of("signs", np.stack([oracle.floats[changed], now.floats[changed]]))
        assert found[changed] == pytest.approx(float(codes[0] @ codes[1]), abs=2e-6)


def test_a_newer_model_brings_codes_of_its_own(world):
    finalized(world, platform.start(world, "signs"))
    request = TrainCodecRequest("newer", "pics", model="kin", like="signs", bits=2)
    train_codec(world, request, lambda done, total: None)
    believe(world, "signs", "newer")
    oracle = Oracle(world)
    with Replica(world, oracle.gallery) as replica:
        row = platform.start(world, "newer")
        assert row.strategy == "reembed"
        advance.advance(world, row.id)
        work_some(world, row.id, 3)
        version = oracle.assert_answers(replica, "newer")
        assert 0 < (version == row.id).sum() < N
        fresh(world, replica)
        finalized(world, row)
        assert (oracle.assert_answers(replica, "newer") == row.id).all()
        fresh(world, replica)
    assert [each for each in check_invariants(world) if not each.ok] == []


def assert_shards(context):
    """Shards are laid out as the whole."""
    with context.engine.connect() as connection:
        whole = laid_out(connection, 1)
        for number in (1, 2):
            shard = Shard(number, 2, block=16)
            part, rows = laid_out(connection, 1, shard), shard.rows(np.arange(shard.size(N)))
            np.testing.assert_array_equal(part.vectors, whole.vectors[rows])
            np.testing.assert_array_equal(part.version, whole.version[rows])


def test_a_restart_and_shards_hold_calibrated_codes_beside_floats_and_codes_alone(
    calibrated_world, tmp_path, said
):
    world, oracle = calibrated_world, Oracle(calibrated_world)
    later = SIGNS.after(FINER)
    with serve(world) as follower:
        write(follower)
        of_floats = shutil.copytree(folder(world), tmp_path / "kept")
        row = platform.start(world, "signs")
        advance.advance(world, row.id)
        work_some(world, row.id, 3)
        restarted(
            world, said, used=False
        ).close()  # it holds floats, and they have another place beside codes
        oracle.assert_answers(follower, "signs", {"signs": SIGNS})
        write(follower)
        work_some(world, row.id, 2)
        restarted(world, said, used=True).close()
        assert_shards(world)
        finalized(world, row)
        restarted(world, said, used=False).close()
        put(world, of_floats)
        restarted(world, said, used=False).close()  # as long as codes, and none
        oracle.assert_answers(follower, "signs")
        assert follower.snapshot()[0].shape == (N, DIM), "codes as a code index keeps them"
        write(follower)
        restarted(world, said, used=True).close()

        row = platform.start(world, "finer")
        advance.advance(world, row.id)
        work_some(world, row.id, 3)
        restarted(world, said, used=False).close()  # the older codes are mapped again
        oracle.assert_answers(follower, "finer", {"signs": SIGNS, "finer": later})
        write(follower)
        work_some(world, row.id, 2)
        restarted(world, said, used=True).close()
        assert_shards(world)
        finalized(world, row)
        oracle.assert_answers(follower, "finer")
        assert_shards(world)


def line_of(context, row):
    with context.engine.connect() as connection:
        model = model_queries.model_by_id(connection, row.to_model_id)
    stop = threading.Event()
    return RecodePipeline(
        context, row, Coder(context, model), "slow", stop, stop, float("inf"), lambda seq: None
    )


def test_items_that_come_late_or_change_are_embedded_first_and_what_is_stored_is_not_read_for_them(
    world, tmp_path
):
    """Changed before the start, with the change not yet embedded; changed and added meanwhile; one deleted."""
    changed = [f"class-{label:02d}/0.png" for label in (3, 12, 30)]
    items.update_items(world, "pics", pictures(tmp_path / "more", changed[:1], seed=3))
    row = platform.start(world, "signs")
    slow = line_of(world, row)  # it knows where embeddings are, of before the change
    items.update_items(
        world, "pics", pictures(tmp_path / "between", changed[1:2], seed=6)
    )  # before the plan is written
    follower = Replica(world, Oracle(world).gallery)
    advance.advance(world, row.id)
    work_some(world, row.id, 3)
    items.update_items(world, "pics", pictures(tmp_path / "again", changed[2:], seed=4))
    items.add_items(world, "pics", pictures(tmp_path / "added", ["new/0.png"], seed=5))
    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        base = model_queries.model_by_name(connection, "old")
        reader = StoredFloats(connection, gallery.id, base.id)
        keys = [*changed, "new/0.png", "class-05/1.png"]
        *rows, gone = [gallery_queries.item_by_key(connection, gallery.id, key).row for key in keys]
    items.delete_items(world, "pics", ["class-05/1.png"])
    assert reader.read(np.array(rows))[1].tolist() == [False] * 4
    platform.work(world, row.id)
    drain(world, 1, owner="test")  # what the rollout of floats still had to do
    oracle = Oracle(world)
    oracle.floats[gone] = 0
    with Replica(world, oracle.gallery) as replica:
        version = oracle.assert_answers(replica, "signs")
        late = slow.prepare(SimpleNamespace(first_rank=row.plan_items, n=1, plan_revision=0))
        assert late.rows.tolist() == rows[1:2]
        np.testing.assert_array_equal(
            slow.encoder.encode(late.prepared), oracle.of("signs", oracle.floats[late.rows])
        )
        assert set(np.flatnonzero(version != row.id)) == {gone}
        with follower:
            oracle.assert_answers(follower, "signs")
            fresh(world, follower)
    assert [each for each in check_invariants(world) if not each.ok] == []


def test_an_order_by_flipped_bits_reads_what_is_stored_and_a_rollback_returns_to_it(world):
    oracle = Oracle(world)
    with world.engine.connect() as connection:
        reader = StoredFloats(connection, oracle.gallery.id, oracle.models["old"].id)
        none = StoredFloats(connection, oracle.gallery.id, oracle.models["signs"].id)
    rows = np.random.default_rng(0).permutation(N)[:50]
    vectors, known = reader.read(rows)
    assert known.all()
    np.testing.assert_allclose(vectors, oracle.floats[rows], atol=1e-5)
    assert not reader.known(np.array([N + 3])).any()
    assert not none.read(rows)[1].any()

    with pytest.raises(UsageError, match="'kin' is no codec"):
        platform.start(world, "kin", order="flipped_bits")
    previewed = preview(world, StartRequest("pics", "signs"), first=N).first_items
    row = advance.advance(world, platform.start(world, "signs").id)
    expected = world.codec(oracle.models["signs"]).expected_flips(oracle.floats)
    with world.engine.connect() as connection:
        order = plan_rows(connection, row, 0)
    assert expected.std() > 0
    assert (np.diff(expected[order]) <= 1e-4).all()
    assert [item["key"] for item in previewed] == [oracle.keys[row] for row in order]

    with Replica(world, oracle.gallery) as replica:
        work_some(world, row.id, 4)
        oracle.assert_answers(replica, "signs")
        with OldSystem(world, replica, row) as old:
            oracle.assert_answers(old, "old")
        rollouts.rollback(world, row.id)
        rollouts.acknowledge(world, row.id)
        assert (oracle.assert_answers(replica, "old") != row.id).all()
        assert replica.snapshot()[0].shape == (N, DIM)
        fresh(world, replica)
