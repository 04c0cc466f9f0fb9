"""Searches over a mixture that lost a certificate are refused with the pair named, and answered again with it."""

from __future__ import annotations

import pytest

from models.datasets import read_item
from orchestrator.errors import ExitCode, NotCertifiedError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.service import advance, finish, items, rollouts
from orchestrator.service.search import Query
from orchestrator.service.search import search as search_once
from orchestrator.serving import replica as replicas
from orchestrator.serving.replica import Replica
from tests.engine import platform
from tests.engine.api_server import client_of, until
from tests.engine.test_strategies import believe, certified, follow
from tests.engine.test_supersede import work_some
from tests.engine.test_traffic import Server, sticky_of


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Certificates are looked up whenever the log is followed, not every few seconds."""
    monkeypatch.setattr(replicas, "CERTIFIED_S", 0.0)


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "kin3", seed=0, moved=0.03)
    return context


def execute(context, sql, **values):
    from sqlalchemy import text

    with context.engine.begin() as connection:
        connection.execute(text(sql), values)


def withdraw(context, new, old):
    """Take the pair's certificates out of the ledger, as nothing but a hand can."""
    execute(context, "UPDATE rollout SET certificate_id = NULL")
    execute(
        context,
        "DELETE FROM certificate c USING model q, model g WHERE q.id = c.query_model_id AND g.id = c.gallery_model_id "
        "AND q.name = :new AND g.name = :old",
        new=new,
        old=old,
    )


def ask(replica):
    replica.catch_up()
    return replica.search([read_item(replica.items([5])[5].uri)], k=3)[0]


def assert_refused(context, follower, new, old):
    """By a replica that follows, by one that is loaded now, and by a search from the command line."""
    for replica in (follower, follow(context)):
        with pytest.raises(
            NotCertifiedError, match=f"'{new}' may not search the stored embeddings of '{old}'"
        ):
            ask(replica)
        assert new in replica.refused
    with pytest.raises(NotCertifiedError) as caught:
        search_once(context, "pics", Query(key="class-04/0.png"), 3)
    assert (caught.value.code, caught.value.exit_code) == ("not_certified", 5)


def assert_answered(context, follower, model):
    for replica in (follower, follow(context)):
        assert ask(replica).model == model
        assert replica.refused is None


def test_a_pair_that_lost_its_certificate_is_refused_until_it_is_measured_again(world):
    follower, row = follow(world), advance.advance(world, platform.start(world).id)
    work_some(world, row.id, 3)
    assert_answered(world, follower, "kin")
    withdraw(world, "kin", "old")
    assert_refused(world, follower, "kin", "old")
    believe(world, "old", "kin")
    assert_answered(world, follower, "kin")


def test_a_refusal_ends_when_none_of_the_old_embeddings_is_left(world):
    follower, row = follow(world), advance.advance(world, platform.start(world).id)
    withdraw(world, "kin", "old")
    assert_refused(world, follower, "kin", "old")
    platform.work(world, row.id)
    assert_answered(world, follower, "kin")


def test_going_back_needs_no_certificate(world):
    follower, row = follow(world), platform.start(world)
    withdraw(world, "kin", "old")
    assert_refused(world, follower, "kin", "old")
    rollouts.rollback(world, row.id)
    assert_answered(world, follower, "old")


def test_measured_again_and_refused_is_withdrawn_and_inconclusive_is_not(world):
    follower, row = follow(world), platform.start(world)
    for verdict in ("inconclusive", "refused"):
        assert_answered(world, follower, "kin")
        believe(world, "old", "kin")
        execute(
            world, "UPDATE certificate SET verdict = :verdict, reason = 'by hand' WHERE id = (SELECT max(id) FROM certificate)",
            verdict=verdict,
        )  # fmt: skip
    assert_refused(world, follower, "kin", "old")
    assert "it was refused: by hand" in follower.refused
    assert rollouts.rollback(world, row.id).state == "rolled_back"
    assert_answered(world, follower, "old")


@pytest.mark.parametrize("lost", ["old", "kin"])
def test_of_three_versions_each_needs_its_own(world, lost):
    follower, row = follow(world), advance.advance(world, platform.start(world).id)
    work_some(world, row.id, 6)
    for old in ("old", "kin"):
        assert platform.certify_pair(world, old, "kin3") == "certified"
    newest = advance.advance(world, platform.start(world, "kin3", supersede=True, order="row").id)
    work_some(world, newest.id, 3)
    assert_answered(world, follower, "kin3")
    withdraw(world, "kin", "old")  # the pair of the rollout that was superseded: nobody asks for it any more
    assert_answered(world, follower, "kin3")
    withdraw(world, "kin3", lost)
    assert_refused(world, follower, "kin3", lost)
    platform.work(world, newest.id)
    assert_answered(world, follower, "kin3")


def test_a_rollout_that_was_written_by_hand_is_refused_as_start_would(world):
    """`kin3` was never measured against `old`; somebody made it serve all the same."""
    follower, row = follow(world), platform.start(world)
    execute(
        world,
        "UPDATE rollout SET to_model_id = (SELECT id FROM model WHERE name = 'kin3') WHERE id = :id",
        id=row.id,
    )
    execute(
        world,
        "UPDATE serving SET model_id = (SELECT id FROM model WHERE name = 'kin3') WHERE rollout_id = :id",
        id=row.id,
    )
    assert_refused(world, follower, "kin3", "old")


@pytest.mark.parametrize("backward", [True, False])
def test_an_adapter_counts_with_its_own_certificate_only(world, tmp_path, backward):
    platform.register_network(world, tmp_path, "far", seed=5, dim=48)
    adapter, follower = certified(world, tmp_path, "old", "far", backward=backward), follow(world)
    platform.start(world, "far", adapter=adapter)
    assert_answered(world, follower, "far")
    withdraw(world, "far", "old")
    believe(world, "old", "far")  # without the adapter: another pair
    assert_refused(world, follower, "far", "old")
    assert f"through adapter '{adapter}'" in follower.refused


def test_what_a_finalized_rollout_left_of_older_ones_was_accepted_with_it(world, tmp_path):
    """`start` asks for no certificate of kin3 against old, although one item is old's still."""
    follower = follow(world)
    unreadable = tmp_path / "pictures" / "class-05" / "2.png"
    content = unreadable.read_bytes()
    unreadable.write_bytes(b"no picture")
    row = platform.work(world, platform.start(world).id)
    finish.finalize(world, row.id)
    assert_answered(world, follower, "kin")
    assert follower._served.versions == {1, row.id}
    assert platform.certify_pair(world, "kin", "kin3") == "certified"
    newest = advance.advance(world, platform.start(world, "kin3").id)
    assert_answered(world, follower, "kin3")
    work_some(world, newest.id, 3)
    unreadable.write_bytes(content)
    assert_answered(world, follower, "kin3")
    assert follower._served.versions == {1, row.id, newest.id}
    execute(world, "UPDATE rollout SET reclaimed_at = now() WHERE id = 1")
    assert_answered(world, follower, "kin3")


def test_items_that_came_under_a_query_adapter_are_searched(world, tmp_path):
    platform.register_network(world, tmp_path, "far", seed=5, dim=48)
    adapter, follower = certified(world, tmp_path, "old", "far", backward=True), follow(world)
    platform.start(world, "far", adapter=adapter)
    more = platform.draw_pictures(tmp_path / "more", 1, seed=3)
    for picture in list(more.glob("*/0.png")):
        picture.rename(picture.with_name("new.png"))
    platform.work(world, items.add_items(world, "pics", str(more)).rollout_id)
    assert_answered(world, follower, "far")


def test_the_api_refuses_and_says_so(world):
    platform.start(world)
    with client_of(world) as client:
        asked = {"key": "class-04/0.png", "k": 3}
        assert client.post("/search/pics", json=asked).status_code == 200
        assert 'hotrefresh_replica_refused{gallery="pics"} 0.0' in client.get("/metrics").text
        withdraw(world, "kin", "old")
        until(lambda: client.post("/search/pics", json=asked).status_code == 409)
        error = client.post("/search/pics", json=asked).json()["error"]
        assert error["code"] == "not_certified"
        assert "'kin'" in error["message"]
        assert "'old'" in error["message"]
        health = client.get("/readyz")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert any("may not search" in reason for reason in health.json()["reasons"])
        until(lambda: 'hotrefresh_replica_refused{gallery="pics"} 1.0' in client.get("/metrics").text)


def test_another_gallery_s_certificate_does_not_count(world):
    follower = follow(world)
    platform.start(world)
    with world.engine.begin() as connection:
        other = gallery_queries.insert_gallery(connection, name="other", modality="image", source="x")
        gallery_queries.insert_query_set(
            connection, gallery_id=other, name="asked", relevance="label", source="x"
        )
    execute(world, "UPDATE certificate SET query_set_id = (SELECT max(id) FROM query_set)")
    assert_refused(world, follower, "kin", "old")
    assert isinstance(follower, Replica)


def test_who_measures_a_pair_that_serves_and_gets_a_refusal_is_told_that_searches_stop(
    world, tmp_path, hotrefresh
):
    platform.register_network(world, tmp_path, "bad", seed=5, kept=2)
    measure = ("model", "certify", "old", "bad", "--gallery", "pics", "--minimum-queries", "20")
    stops = "warning: searches of gallery pics are refused from now on"
    code, _, err = hotrefresh(*measure)
    assert (code, stops in err) == (ExitCode.NOT_CERTIFIED, False), "nothing is served by it"
    platform.certify_by_hand(world, "bad")
    row, server = platform.start(world, "bad", canary=50), Server(world)
    old, new = (sticky_of(row.id, new=side, percent=50) for side in (False, True))
    assert server.ask("class-04/0.png", new).answer.model == "bad"

    code, _, err = hotrefresh(*measure)
    assert (code, stops in err) == (ExitCode.NOT_CERTIFIED, True)
    assert "'bad' may not search the stored embeddings of 'old'" in err
    assert "hotrefresh model certify old bad --gallery pics" in err
    assert err.splitlines()[-1].endswith("rollout rollback pics")
    server.replica.catch_up()
    with pytest.raises(NotCertifiedError):
        server.ask("class-04/0.png", new)
    assert server.ask("class-04/0.png", old).answer.model == "old"
    assert stops in hotrefresh("--quiet", *measure, "-o", "json")[2]

    code, _, err = hotrefresh(*measure[:2], "old", "kin", *measure[4:])
    assert (code, stops in err) == (0, False), "another pair, and it is certified"
    rollouts.rollback(world, row.id)
    code, _, err = hotrefresh(*measure)
    assert (code, stops in err) == (ExitCode.NOT_CERTIFIED, False)
    server.traffic.close()
