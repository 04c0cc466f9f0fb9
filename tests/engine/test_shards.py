"""A gallery on several servers answers as on one: the same bits, or one clear error."""

from __future__ import annotations

import base64
from itertools import count

import pytest

from cli.main import main
from orchestrator.api.replicas import ServedReplica
from orchestrator.api.shard_clients import not_a_whole
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.service import advance, embed, finish, galleries, items, rollouts
from orchestrator.service import start as starting
from orchestrator.serving import replica as replicas
from tests.engine import platform
from tests.engine.api_server import until
from tests.engine.shard_servers import Cluster, serving
from tests.engine.test_certified_mixing import withdraw
from tests.engine.test_strategies import believe
from tests.engine.test_supersede import work_some

SHOPS = ("north", "south", "east")
GUARD = {"low": -0.1, "high": 0.1, "scale": 1.0, "offset": 0.0}
_files = count()


def manifest(folder, rows):
    file = folder / f"manifest-{next(_files)}.csv"
    return str(platform.write_csv(file, ("key", "path", "label", "shop", "season"), rows))


@pytest.fixture
def world(context, tmp_path):
    """300 items: 240 pictures in three shops, then 60 of them again; only the first five have a season."""
    pictures = sorted(platform.draw_pictures(tmp_path / "pictures").rglob("*.png"))
    rows = [
        (f"p{n}", path, path.parent.name, SHOPS[n % 3], "summer" if n < 5 else "")
        for n, path in enumerate(pictures)
    ]
    rows += [(f"again{n}", path, path.parent.name, "north", "") for n, path in enumerate(pictures[:240:4])]
    galleries.create_gallery(context, "pics", manifest(tmp_path, rows))
    asked = str(platform.draw_pictures(tmp_path / "queries", 3, seed=7))
    galleries.import_query_set(context, "pics", "asked", asked)
    for name, moved in (("old", 0.0), ("kin", 0.02)):
        platform.register_network(context, tmp_path, name, seed=0, moved=moved)
    platform.work(context, embed.embed_gallery(context, "pics", "old").id)
    platform.certify_pair(context, "old", "kin")
    return context


def questions(tmp_path):
    """Path and body of requests of every form; ties among the items that are there twice, cut off by k."""
    picture = base64.b64encode((tmp_path / "queries" / "class-04" / "0.png").read_bytes()).decode()
    vector = [((n * 7919) % 101 - 50) / 50 for n in range(32)]
    for k in (1, 2, 3, 7, 1000):
        yield "", {"key": "again3", "k": k}
    yield "", {"image": picture, "k": 20}
    yield "", {"vector": vector, "k": 1000}
    yield "", {"key": "p200", "where": {"shop": ["south", "east"], "label": "class-33"}, "k": 300}
    yield "", {"key": "p200", "where": {"season": "summer"}, "k": 300}  # the first shard alone has it
    yield "", {"key": "p200", "where": {"season": "winter"}}
    yield "", {"key": "p200", "where": {"colour": "red"}}
    yield "", {"key": "nothing"}
    yield "", {"text": "a bicycle"}
    yield "", {"vector": [1.0, 0.5]}
    yield "", {"vector": vector, "model": "stranger"}
    mixed = [{"key": "p7"}, {"key": "nothing"}, {"image": picture}, {"image": "!"}, {"vector": vector}]
    yield "/batch", {"queries": mixed, "k": 12, "where": {"shop": "north"}}
    yield "/batch", {"queries": mixed, "where": {"colour": "red"}}


def end_of_log(cluster, gallery="pics"):
    with cluster.context.engine.connect() as connection:
        return log_queries.last_seq(connection, gallery_queries.gallery_by_name(connection, gallery).id)


def at_the_same_place(cluster, gallery="pics", key="p7"):
    """Wait until the server that holds everything and all shards are at the end of the log."""
    end = end_of_log(cluster, gallery)

    def places():
        whole = cluster.whole.post(f"/search/{gallery}", json={"key": key}).json().get("log_sequence")
        return {whole} | {shard.get(f"/shard/{gallery}").json()["seq"] for shard in cluster.shards}

    until(lambda: places() == {end})


def assert_as_the_whole(cluster, tmp_path):
    at_the_same_place(cluster)
    for path, body in questions(tmp_path):
        wanted, found = (
            each.post(f"/search/pics{path}", json=body) for each in (cluster.whole, cluster.front)
        )
        assert (found.status_code, found.json()) == (wanted.status_code, wanted.json()), body
    content = (tmp_path / "queries" / "class-05" / "1.png").read_bytes()
    sent = {"files": {"file": ("a.png", content)}, "data": {"k": "9"}}
    uploads = [each.post("/search/pics/image", **sent) for each in (cluster.whole, cluster.front)]
    assert uploads[0].json() == uploads[1].json()
    assert uploads[0].status_code == 200


def held(shard):
    """Keys that a shard's own search finds, and the rows it counts."""
    dim = 32
    vector = base64.b64encode(b"\0\0\x80\x3f" + b"\0" * 4 * (dim - 1)).decode()
    path = shard.get("/shard/pics").json()["path"]
    body = {"vectors": vector, "dim": dim, "path": path, "k": 1000}
    found = shard.post("/shard/pics/search", json=body).json()
    return {hit[1]: hit[0] for hit in found["hits"][0]}, found["items"]


def test_shards_answer_bit_for_bit_as_the_whole_through_a_refresh(world, tmp_path):
    with Cluster(world, 3, rows=16) as cluster:
        assert_as_the_whole(cluster, tmp_path)
        parts = [held(shard) for shard in cluster.shards]
        assert [number for _, number in parts] == [108, 96, 96]
        for at, (keys, _) in enumerate(parts):
            assert {row // 16 % 3 for row in keys.values()} == {at}
        row = advance.advance(world, platform.start(world).id)
        assert_as_the_whole(cluster, tmp_path)
        work_some(world, row.id, 7)
        assert_as_the_whole(cluster, tmp_path)
        cluster.stop(2)
        away = cluster.front.post("/search/pics", json={"key": "p7"})
        assert (away.status_code, away.json()["error"]["code"]) == (503, "unreachable")
        assert cluster.urls[1] in away.json()["error"]["message"]
        until(lambda: cluster.front.get("/readyz").status_code == 503)
        assert cluster.urls[1] in str(cluster.front.get("/readyz").json()["reasons"])
        cluster.start(2)
        assert_as_the_whole(cluster, tmp_path)
        until(lambda: cluster.front.get("/readyz").json()["status"] == "ready")
        late = sorted((tmp_path / "queries").rglob("*.png"))[:40]
        more = [(f"late{n}", path, path.parent.name, "west", "") for n, path in enumerate(late)]
        items.add_items(world, "pics", manifest(tmp_path, more))
        items.update_items(world, "pics", manifest(tmp_path, [("p9", late[3], "class-01", "west", "")]))
        items.delete_items(world, "pics", ["p3", "p40", "again3"])
        assert cluster.front.post("/search/pics", json={"key": "again3"}).status_code in (200, 404)
        assert_as_the_whole(cluster, tmp_path)
        platform.work(world, row.id)
        assert_as_the_whole(cluster, tmp_path)
        found = cluster.front.post("/search/pics", json={"key": "late5", "where": {"shop": "west"}}).json()
        assert found["hits"][0]["key"] == "late5"
        finish.finalize(world, row.id)
        cluster.stop(3)
        cluster.start(3)  # loads what the others followed: late rows, a changed one, deleted ones
        assert_as_the_whole(cluster, tmp_path)
        refused = cluster.shards[0].post("/search/pics", json={"key": "p7"})
        assert (refused.status_code, "shard 1/3" in refused.json()["error"]["message"]) == (409, True)
        metrics = cluster.front.get("/metrics").text
        assert 'hotrefresh_replica_lag_batches{gallery="pics"} 0.0' in metrics


def test_places_that_cannot_be_brought_together_are_named_and_every_hit_is_of_its_version(world, monkeypatch):
    """A shard that follows no more: the others' places are later, and each hit's score is that of the version it names."""
    row = advance.advance(world, platform.start(world).id)
    with Cluster(world, 2, rows=16) as cluster:
        at_the_same_place(cluster)
        before = cluster.whole.post("/search/pics", json={"key": "p7", "k": 300}).json()
        whole = ServedReplica.catch_up
        with monkeypatch.context() as patched:
            held_back = lambda self: 0 if str(self.shard) == "2/2" else whole(self)  # noqa: E731
            patched.setattr(ServedReplica, "catch_up", held_back)
            patched.setattr(ServedReplica, "reach_place", lambda self, seq: None)
            work_some(world, row.id, 4)
            end = end_of_log(cluster)
            until(lambda: cluster.shards[0].get("/shard/pics").json()["seq"] == end)
            found = cluster.front.post("/search/pics", json={"key": "p7", "k": 300}).json()
        assert found["log_sequences"] == [end, before["log_sequence"]]
        assert found["log_sequence"] == before["log_sequence"]
        at_the_same_place(cluster)
        after = cluster.whole.post("/search/pics", json={"key": "p7", "k": 300}).json()
        assert before["coverage_ratio"] < found["coverage_ratio"] < after["coverage_ratio"]
        of = [{hit["row"]: hit for hit in each["hits"]} for each in (after, before)]
        assert len(found["hits"]) == 300
        for hit in found["hits"]:
            assert hit == of[hit["row"] // 16 % 2][hit["row"]]
        assert "log_sequences" not in cluster.front.post("/search/pics", json={"key": "p7"}).json()


def test_more_shards_than_blocks_and_a_shard_without_rows_answer_as_the_whole(world, tmp_path):
    with Cluster(world, 2, rows=65_536) as cluster:
        assert_as_the_whole(cluster, tmp_path)
        assert held(cluster.shards[1]) == ({}, 0)


def test_what_shards_cannot_do_is_refused_and_what_may_not_be_mixed_as_by_the_whole(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(replicas, "CERTIFIED_S", 0.0)
    with Cluster(world, 2, rows=16) as cluster:
        for more, guard, word in (
            ({"canary": 50}, None, "promote"),
            ({"canary": 0, "shadow": 1.0}, None, "promote"),
            ({}, GUARD, "guard"),
        ):
            with monkeypatch.context() as patched:  # no certificate of these models has a guard
                patched.setattr(starting, "resolved_guard", lambda *_, guard=guard: guard)
                row = platform.start(world, **more)
            until(lambda: cluster.front.get("/readyz").json()["status"] == "degraded")
            assert word in str(cluster.front.get("/readyz").json()["reasons"])
            assert cluster.front.post("/search/pics", json={"key": "p7"}).json()["model"] == "old"
            rollouts.rollback(world, row.id)
            until(lambda: cluster.front.get("/readyz").json()["status"] == "ready")
        row = advance.advance(world, platform.start(world).id)
        work_some(world, row.id, 3)
        withdraw(world, "kin", "old")
        body = {"key": "p7"}
        until(lambda: cluster.front.post("/search/pics", json=body).status_code == 409)
        until(lambda: cluster.whole.post("/search/pics", json=body).status_code == 409)
        refused = cluster.front.post("/search/pics", json=body).json()
        assert refused == cluster.whole.post("/search/pics", json=body).json()
        assert refused["error"]["code"] == "not_certified"
        believe(world, "old", "kin")
        assert_as_the_whole(cluster, tmp_path)


def test_servers_that_are_no_shards_of_one_whole_are_refused_at_the_start(context, capsys, monkeypatch):
    """By the command, before it listens; one error that says which server is what."""
    monkeypatch.setenv("HOTREFRESH_DATABASE_URL", context.settings.database_url)
    monkeypatch.setenv("HOTREFRESH_BROKER_URL", context.settings.broker_url)
    monkeypatch.setenv("HOTREFRESH_DATA_DIR", str(context.settings.data_dir))
    monkeypatch.setenv("HOTREFRESH_API_TOKEN", "a-token-of-the-tests")
    with (
        serving(context, shard="1/3") as one,
        serving(context, shard="2/3") as two,
        serving(context) as whole,
    ):
        urls = [str(each.base_url).rstrip("/") for each in (one, two, whole)]
        for given, said in (
            ([urls[0], urls[1], urls[1]], "a URL is there twice"),
            ([urls[0], urls[1]], "there are 2 of 3"),
            ([urls[0], urls[1], "http://127.0.0.1:9", "http://127.0.0.1:10"], "there are 4 of 3"),
            ([urls[0], "ftp://x"], "no URL of a shard"),
        ):
            arguments = [part for url in given for part in ("--merge", url)]
            assert main(["serve", "--port", "0", *arguments]) == 2, given
            assert said in " ".join(capsys.readouterr().err.split())
        assert main(["serve", "--port", "0", "--shard", "1/3", "--merge", urls[0]]) == 2
        assert main(["serve", "--port", "0", "--shard", "4/3"]) == 2
        capsys.readouterr()
        with serving(context, ready=False, merge=[urls[0], urls[1], urls[2]]) as front:
            assert front.get("/galleries").status_code == 200


def said_to_be(*shards, rows=16):
    urls = [f"http://{number}" for number in range(len(shards))]
    found = [None if shard is None else {"shard": shard, "shard_rows": rows} for shard in shards]
    return not_a_whole(urls, found)


def test_only_all_shards_once_and_of_one_kind_are_a_whole():
    assert said_to_be("2/3", "1/3", "3/3") is None
    assert said_to_be("1/1") is None
    assert said_to_be("2/3", None, "3/3") is None  # the one that is away may be the first
    assert "shard 2 is there twice" in said_to_be("2/3", "1/3", "2/3")
    assert "different numbers" in said_to_be("1/3", "2/3", "3/4")
    assert "there are 3 of 4" in said_to_be("1/4", "2/4", "3/4")
    assert "there are 2 of 1" in said_to_be("1/1", None)
    other = [{"shard": "1/2", "shard_rows": 16}, {"shard": "2/2", "shard_rows": 32}]
    assert "shard_rows" in not_a_whole(["http://0", "http://1"], other)
