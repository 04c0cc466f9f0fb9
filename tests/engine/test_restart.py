"""A replica that begins from its snapshot is the one that is loaded fresh, bit for bit; and whatever is wrong, it is that one."""

from __future__ import annotations

import random
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from models.datasets import read_item
from orchestrator import failpoints
from orchestrator.api import restart
from orchestrator.api.replicas import Replicas, ServedReplica
from orchestrator.errors import HotrefreshError, UnreachableError
from orchestrator.failpoints import SNAPSHOT_POINTS, InjectedError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.service import advance, finish, items, rollouts
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.serving import snapshots
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.snapshot_file import read
from orchestrator.serving.snapshots import InterruptedCopyError
from tests.engine import platform, strategies
from tests.engine.test_calibration import certified_by_hand
from tests.engine.test_filters import manifest, pictures, three_shops
from tests.engine.test_supersede import work_some


@pytest.fixture
def world(context, tmp_path):
    return three_shops(context, tmp_path)


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


def serve(context, **settings):
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
    changed = context.settings.model_copy(update=settings)
    return ServedReplica(replace(context, settings=changed), gallery)


def folder(context):
    return context.settings.data_dir.absolute() / "replicas" / "1"


def write(replica):
    """Write its snapshot, as the thread does."""
    replica._restart.write(replica.standing)


def held(replica, context):
    """All that a replica knows and answers, in values that are compared bit for bit."""
    vectors, version, seq = replica.snapshot()
    columns, rows = replica._served.columns, replica.shard.rows(np.arange(len(version))).tolist()
    found = replica.items(rows)
    asked = [
        read_item(f"file://{path}") for path in pictures(context.settings.data_dir.parent / "queries")[:2]
    ]
    try:
        answers = replica.search(asked, 20), replica.search(asked, 20, {"shop": "south"})
    except HotrefreshError as error:
        answers = error.code, str(error)
    return {
        "vectors": (vectors.shape, vectors.tobytes()),
        "version": version.tobytes(),
        "seq": seq,
        "items": found,
        "keys": {item.key: replica.item(item.key) for item in found.values()},
        "attributes": {
            name: (codes.tobytes(), columns._values[name]) for name, codes in columns._codes.items()
        },
        "known": columns.known,
        "counts": {each: n for each, n in replica._served.counts.items() if n},
        "path": (replica.path.ids, replica.model.name),
        "serves": (replica.rollout_id, replica._served.guard, replica.refused),
        "models": replica._models,
        "answers": answers,
    }


def restarted(context, said, *, used, **settings):
    """Begin anew, from the snapshot where `used` says so, and compare with a replica that has none."""
    said.clear()
    again = serve(context, **settings)
    events = [(event, part) for event, part, _ in said]
    assert (("snapshot.used", None) in events) == used, said
    wanted, found = held(serve(context, **settings, replica_snapshot_s=0), context), held(again, context)
    assert [name for name in wanted if found[name] != wanted[name]] == [], "these differ"
    return again


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_any_place_of_a_refresh_a_restart_is_a_fresh_load(world, tmp_path, said, seed):
    """Snapshots of random places, each begun from at later ones: batches, changes, deletions and new items in between."""
    # The last one is a shard: every third block of 16 rows.
    part = {"shard": "2/3", "shard_rows": 16} if seed == 2 else {}
    draw, number, paths = random.Random(seed), count(), pictures(tmp_path / "queries")
    alive = [f"p{n}" for n in range(240)]
    row = platform.start(world)

    def change():
        key = draw.choice(alive)
        line = (key, draw.choice(paths), draw.choice(["", "class-39"]), f"shop-{next(number)}", "winter")
        items.update_items(world, "pics", manifest(tmp_path, [line]))

    def add():
        key = f"new-{next(number)}"
        items.add_items(world, "pics", manifest(tmp_path, [(key, draw.choice(paths), "", "west", "")]))
        alive.append(key)

    def delete():
        gone = [alive.pop(draw.randrange(len(alive))) for _ in range(2)]
        items.delete_items(world, "pics", gone)

    steps = [change, change, add, add, delete, *[lambda: work_some(world, row.id, 2)] * 5]
    draw.shuffle(steps)
    follower = serve(world, **part)
    write(follower)
    kept = [shutil.copytree(folder(world), tmp_path / "kept")]
    change()  # before the plan is written: such an item gets no late rank
    advance.advance(world, row.id)
    restarted(world, said, used=True, **part)
    for place, step in enumerate(steps):
        step()
        follower.catch_up()
        if draw.random() < 0.5:
            write(follower)
            kept.append(shutil.copytree(folder(world), tmp_path / f"kept-{place}"))
        put(world, draw.choice(kept))
        restarted(world, said, used=True, **part)
    platform.work(world, row.id)
    finish.finalize(world, row.id)
    for each in draw.sample(kept, min(2, len(kept))):
        put(world, each)
        again = restarted(world, said, used=True, **part)
    write(again)  # a snapshot out of what began from one
    assert restarted(world, said, used=True, **part).snapshot_seq == again.seq
    rollouts.rollback(world, row.id)
    for each in (folder(world), draw.choice(kept)):
        put(world, each)
        restarted(world, said, used=False, **part)
        assert "(reset)" in str(said) or "counts no more" in str(said)
    follower.catch_up()
    write(follower)
    restarted(world, said, used=True, **part)


def put(context, kept):
    """A snapshot that was kept is the one that is found."""
    if kept != folder(context):
        shutil.copytree(kept, folder(context), dirs_exist_ok=True)


def test_a_calibrated_rollout_is_begun_from_as_it_is_laid_out(world, tmp_path, said):
    platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    certified_by_hand(world)
    before = serve(world)
    write(before)
    assert read(folder(world) / "vectors.snapshot").arrays["vectors"].shape[1] == 32
    row = advance.advance(world, platform.start(world, "far").id)
    restarted(world, said, used=False)  # every row is laid out for it
    follower = serve(world)
    work_some(world, row.id, 4)
    follower.catch_up()
    write(follower)
    kept = read(folder(world) / "vectors.snapshot")
    assert kept.arrays["vectors"].shape[1] == 33
    assert kept.description["maps"] == {str(row.id): row.config["calibration"]}
    work_some(world, row.id, 4)
    restarted(world, said, used=True)
    with world.engine.begin() as connection:  # no verb does this: the map would be that of another history
        connection.exec_driver_sql(
            "UPDATE rollout SET config = jsonb_set(config::jsonb, '{calibration,offset}', '0.25') WHERE id = 2"
        )
    restarted(world, said, used=False)
    assert "calibrated otherwise" in str(said)


def test_entries_that_change_every_row_call_for_a_fresh_load(world, tmp_path, said):
    adapter = strategies.register_adapter(world, tmp_path, "old", "kin").name
    request = CertifyRequest("old", "kin", "pics", adapter=adapter, minimum_queries=20)
    assert certify(world, request).verdict == "certified"
    follower = serve(world)
    write(follower)
    row = advance.advance(world, platform.start(world, "kin", adapter=adapter).id)
    restarted(world, said, used=False)
    assert "(deployed)" in str(said)
    work_some(world, row.id, 2)
    follower.catch_up()
    write(follower)
    work_some(world, row.id, 2)
    restarted(world, said, used=True)  # the vectors in it are lifted
    platform.work(world, row.id)
    finish.finalize(world, row.id)
    restarted(world, said, used=True)


def test_an_item_that_could_not_be_embedded_and_changed_again_has_the_vector_of_a_fresh_load(
    world, tmp_path, said
):
    """Its batch no longer says that it was emptied."""
    row = advance.advance(world, platform.start(world).id)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items.update_items(world, "pics", manifest(tmp_path, [("p10", tmp_path / "broken.png", "", "west", "")]))
    work_some(world, row.id, 1)
    follower = serve(world)
    assert follower._served.version[10] == 0
    write(follower)
    restarted(world, said, used=True)
    good = pictures(tmp_path / "queries")[0]
    items.update_items(world, "pics", manifest(tmp_path, [("p10", good, "", "east", "")]))
    assert restarted(world, said, used=False)._served.version[10] != 0
    assert "changed again" in str(said)
    work_some(world, row.id, 1)
    follower.catch_up()
    write(follower)
    restarted(world, said, used=True)


def test_what_is_written_while_batches_come_is_of_one_place_of_the_log(world, tmp_path, said, monkeypatch):
    """Between any two slices something is applied: to rows that are copied already, and to rows that are not."""
    row = advance.advance(world, platform.start(world).id)
    follower, paths, slices = serve(world), pictures(tmp_path / "queries"), count()
    monkeypatch.setattr(snapshots, "SLICE_BYTES", 24 * 32 * 4)

    def between(point):
        if point != "snapshot_copying":
            return
        place = next(slices)
        if place == 2:
            items.add_items(world, "pics", manifest(tmp_path, [("new", paths[0], "", "west", "")]))
        if place == 4:
            items.delete_items(world, "pics", ["p3", "p200"])
        work_some(world, row.id, 1)
        follower.catch_up()

    monkeypatch.setattr(snapshots, "reach", between)
    before = follower.seq
    write(follower)
    assert next(slices) == 10
    kept = read(folder(world) / "vectors.snapshot")
    seq = kept.description["mark"][0]
    assert seq == follower.seq >= before + 11
    with world.engine.connect() as connection:
        wanted = load_matrix(connection, 1, up_to=seq)
    assert kept.arrays["vectors"].tobytes() == wanted.vectors.tobytes()
    assert kept.arrays["version"].tobytes() == wanted.version.tobytes()
    assert follower._served.written is None
    restarted(world, said, used=True)


def test_a_copy_ends_when_the_gallery_is_loaded_anew_or_the_replica_stops(world, said, monkeypatch):
    row = advance.advance(world, platform.start(world).id)
    follower, stop = serve(world), threading.Event()
    monkeypatch.setattr(snapshots, "SLICE_BYTES", 24 * 32 * 4)
    said.clear()

    def roll_back(point):
        if point == "snapshot_copying" and not said:
            said.append(point)
            rollouts.rollback(world, row.id)
            follower.catch_up()

    monkeypatch.setattr(snapshots, "reach", roll_back)
    with pytest.raises(InterruptedCopyError, match="loaded anew"):
        write(follower)
    assert sorted(path.name for path in folder(world).iterdir()) == ["items.snapshot", "lock"]
    stop.set()
    with pytest.raises(InterruptedCopyError, match="stops"):
        follower._restart.write(follower.standing, stop)
    write(follower)
    restarted(world, said, used=True)


def test_a_fault_at_any_stage_leaves_the_snapshot_before(world, said):
    row = advance.advance(world, platform.start(world).id)
    follower = serve(world)
    write(follower)
    for number, point in enumerate(SNAPSHOT_POINTS):
        work_some(world, row.id, 1)
        follower.catch_up()
        at = follower.snapshot_seq
        failpoints.arm(f"{point}={('disk_full', 'raise')[number % 2]}")
        with pytest.raises((UnreachableError, OSError, InjectedError)):
            write(follower)
        failpoints.arm("")
        named = point == "snapshot_named"  # it is there already, and is right
        again = restarted(world, said, used=True)
        assert again.snapshot_seq == (follower.seq if named else at)
        assert [path.name for path in folder(world).glob(".*")] == []
        write(follower)


@contextmanager
def changed_ledger(context, change, back):
    with context.engine.begin() as connection:
        connection.exec_driver_sql(change)
    yield
    with context.engine.begin() as connection:
        connection.exec_driver_sql(back)


def test_a_snapshot_of_another_ledger_gallery_or_history_is_not_used(world, tmp_path, said):
    """What a ledger holds that was restored from a backup and went another way."""
    row = advance.advance(world, platform.start(world).id)
    work_some(world, row.id, 2)
    path = pictures(tmp_path / "queries")[0]
    items.update_items(world, "pics", manifest(tmp_path, [("p10", path, "class-39", "west", "")]))
    follower = serve(world)
    write(follower)
    work_some(world, row.id, 2)
    restarted(world, said, used=True)
    seq = follower.seq
    for change, back, why in (
        ("UPDATE gallery SET created_at = created_at + interval '1 us'",
         "UPDATE gallery SET created_at = created_at - interval '1 us'", "another gallery or ledger"),
        (f"UPDATE batch SET committed_at = committed_at + interval '1 us' WHERE seq = {seq}",
         f"UPDATE batch SET committed_at = committed_at - interval '1 us' WHERE seq = {seq}", "another than when"),
        (f"UPDATE gallery_log SET last_seq = {seq - 1}", f"UPDATE gallery_log SET last_seq = {seq + 2}", "ends at"),
    ):  # fmt: skip
        with changed_ledger(world, change, back):
            said.clear()
            serve(world)
            assert [event for event, _, _ in said] == ["snapshot.not_used"] * 2
            assert why in said[1][2]
    change = "UPDATE item SET first_content = NULL, label = 'else' WHERE key = 'p10'"
    with changed_ledger(world, change, "SELECT 1"):
        said.clear()
        assert serve(world).item("p10").label == "else"
        assert [(event, part) for event, part, _ in said] == [
            ("snapshot.not_used", "items"),
            ("snapshot.used", None),
        ]


def test_a_snapshot_of_another_shard_is_not_used(world, said):
    for settings in ({"shard": "2/3", "shard_rows": 16}, {"shard": "1/3", "shard_rows": 16}, {}):
        write(serve(world, **settings))
    shutil.copy(
        folder(world) / "shard-1-of-3" / "vectors.snapshot",
        folder(world) / "shard-2-of-3" / "vectors.snapshot",
    )
    restarted(world, said, used=False, shard="2/3", shard_rows=16)
    assert "another shard" in str(said)
    restarted(world, said, used=False, shard="1/3", shard_rows=32)
    restarted(world, said, used=True, shard="1/3", shard_rows=16)


def test_a_damaged_snapshot_is_not_used(world, said):
    follower = serve(world)
    write(follower)
    draw = random.Random(3)
    for part in ("vectors", "items"):
        path = folder(world) / f"{part}.snapshot"
        whole = path.read_bytes()
        for damage in range(4):
            at = draw.randrange(len(whole))
            broken = (
                whole[:at]
                if damage % 2
                else whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
            )
            path.write_bytes(broken)
            restarted(world, said, used=part != "vectors")
            assert [(event, which) for event, which, _ in said if event == "snapshot.not_used"] == [
                ("snapshot.not_used", part)
            ]
        path.write_bytes(whole)
    restarted(world, said, used=True)


def test_every_backend_that_holds_the_vectors_itself_can_be_begun_from(world, tmp_path, said):
    row = advance.advance(world, platform.start(world).id)
    new, path = count(), pictures(tmp_path / "queries")[0]
    for chosen in ({"index": "torch"}, {"index": "faiss-ivf"}, {"index_shards": 3}):
        follower = serve(world, **chosen)
        items.add_items(world, "pics", manifest(tmp_path, [(f"new-{next(new)}", path, "", "", "")]))
        work_some(world, row.id, 2)
        follower.catch_up()
        write(follower)
        work_some(world, row.id, 1)
        assert restarted(world, said, used=True).snapshot_seq == follower.seq
    shutil.rmtree(folder(world))
    with serve(world, index="pgvector") as elsewhere:
        elsewhere.keep_snapshots()
    assert not folder(world).exists()


def test_a_server_writes_snapshots_begins_from_them_and_keeps_one_a_gallery(world, said):
    row = advance.advance(world, platform.start(world).id)
    context = replace(world, settings=world.settings.model_copy(update={"replica_snapshot_s": 3600}))
    for turn in range(3):
        served = Replicas(context)
        replica = served.of("pics")
        wait_for(lambda: replica.snapshot_seq == replica.seq)  # noqa: B023 - called at once
        assert served.snapshot_ages() == {"pics": 0}
        work_some(world, row.id, 1)
        wait_for(lambda: not any(served.lags().values()))  # noqa: B023 - likewise
        assert served.snapshot_ages()["pics"] > 0
        served.close()
        assert replica.snapshot_seq == replica.seq
        assert [event for event, _, _ in said] == (["snapshot.used"] if turn else ["snapshot.not_used"] * 2)
        said.clear()
        assert sorted(path.name for path in folder(world).iterdir()) == [
            "items.snapshot",
            "lock",
            "vectors.snapshot",
        ]
    shutil.rmtree(folder(world))
    off = Replicas(replace(world, settings=world.settings.model_copy(update={"replica_snapshot_s": 0})))
    assert off.of("pics").snapshot_seq is None
    assert off.snapshot_ages() == {}
    off.close()
    assert not folder(world).exists()
    assert said == []


def wait_for(condition, limit_s=20.0):
    pause = threading.Event()
    for _ in range(round(limit_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not come")
