"""Searches filtered by what items are: through a refresh, changes and deletions, by replicas that follow and by fresh ones."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

from cli.main import main
from models.datasets import read_item
from orchestrator.client import Client
from orchestrator.errors import ConflictError, StalePathError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.service import advance, embed, galleries, items, listings, rollouts
from orchestrator.service.search import Query
from orchestrator.service.search import search as search_once
from orchestrator.serving.replica import Replica
from tests.engine import platform
from tests.engine.api_server import TOKEN, client_of
from tests.engine.dashboard_server import browser_of
from tests.engine.test_supersede import work_some

SHOPS = ("north", "south", "east")
_files = count()


def manifest(folder, rows):
    """Rows (key, picture, label, shop, season) as a CSV file; an empty word is no attribute."""
    file = folder / f"manifest-{next(_files)}.csv"
    return str(platform.write_csv(file, ("key", "path", "label", "shop", "season"), rows))


def pictures(folder):
    return sorted(folder.rglob("*.png"))


def three_shops(context, tmp_path):
    """Gallery `pics` out of a manifest: 240 pictures in three shops; every fourth has a season too."""
    platform.draw_pictures(tmp_path / "pictures")
    rows = [
        (f"p{n}", path, path.parent.name, SHOPS[n % 3], "summer" if n % 4 == 0 else "")
        for n, path in enumerate(pictures(tmp_path / "pictures"))
    ]
    galleries.create_gallery(context, "pics", manifest(tmp_path, rows))
    galleries.import_query_set(
        context, "pics", "asked", str(platform.draw_pictures(tmp_path / "queries", 3, seed=7))
    )
    for name, moved in (("old", 0.0), ("kin", 0.02)):
        platform.register_network(context, tmp_path, name, seed=0, moved=moved)
    platform.work(context, embed.embed_gallery(context, "pics", "old").id)
    platform.certify_pair(context, "old", "kin")
    return context


@pytest.fixture
def world(context, tmp_path):
    return three_shops(context, tmp_path)


def follow(context):
    with context.engine.connect() as connection:
        return Replica(context, gallery_queries.gallery_by_name(connection, "pics"))


def contents(context, replica):
    """What each row is filtered by, deleted ones nothing: of a replica that follows."""
    replica.load_attributes()
    columns = replica._served.columns
    return [columns.of_row(row) for row in range(len(columns))]


def assert_as_fresh(context, follower):
    """A replica that followed the log filters as one that is loaded now, wherever there is a vector."""
    follower.catch_up()
    fresh = follow(context)
    wanted, found = contents(context, fresh), contents(context, follower)
    served = np.flatnonzero(fresh._served.version)
    n = len(follower._served.version)  # rows behind came since, and have no vector yet
    assert (follower._served.version == fresh._served.version[:n]).all()
    assert not fresh._served.version[n:].any()
    assert [found[row] for row in served] == [wanted[row] for row in served]
    assert_shown(context, (follower, fresh), {int(row): wanted[row] for row in served})
    return fresh


def assert_shown(context, holding, contents):
    """Every hit and every line of a listing says what its item is filtered by, the label apart."""
    expected = {row: without_label(content) for row, content in contents.items()}
    for replica in holding:
        query = read_item(replica.items([5])[5].uri)
        [answer] = replica.search([query], 300)
        assert {hit.row: hit.attributes for hit in answer.hits} == expected
    once = search_once(context, "pics", Query(key="p5"), 300)
    assert {hit.row: hit.attributes for hit in once.hits} == expected
    listed = {each["item"]: each for each in listings.item_versions(context, "pics", None, 1000)}
    shown = {hit.row: listed[hit.key]["attributes"] for hit in once.hits if listed[hit.key]["rollout"]}
    assert shown == expected


def without_label(content):
    return {name: value for name, value in content.items() if name != "label"}


def ask(replica, where, k=240, picture=None):
    query = read_item(replica.items([5])[5].uri) if picture is None else picture
    return [hit.key for hit in replica.search([query], k, where)[0].hits]


def test_a_filter_answers_the_best_of_those_it_lets_through(world):
    replica = follow(world)
    every = ask(replica, None)
    assert len(every) == 240
    for where, wanted in (
        ({"shop": "south"}, lambda n: n % 3 == 1),
        ({"shop": ["south", "east"], "season": "summer"}, lambda n: n % 3 and n % 4 == 0),
        ({"label": "class-07"}, lambda n: n // platform.PER_CLASS == 7),
        ({"shop": "nowhere"}, lambda n: False),
        ({}, lambda n: True),
    ):
        expected = [key for key in every if wanted(int(key[1:]))]
        assert ask(replica, where) == expected
        assert ask(replica, where, k=7) == expected[:7]
    with pytest.raises(UsageError, match="label, season, shop"):
        ask(replica, {"colour": "red"})


def test_an_item_changes_its_attributes_in_the_same_step_as_its_vector(world, tmp_path):
    follower, row = follow(world), advance.advance(world, platform.start(world).id)
    follower.load_attributes()
    work_some(world, row.id, 4)
    path = pictures(tmp_path / "queries")[0]
    items.update_items(world, "pics", manifest(tmp_path, [("p10", path, "class-39", "west", "winter")]))
    added = items.add_items(world, "pics", manifest(tmp_path, [("new", path, "", "west", "")]))
    assert added.rollout_id == row.id
    [waits] = listings.item_versions(world, "pics", "new", 10)
    assert (waits["rollout"], waits["attributes"]) == (None, {"shop": "west"})
    # The ledger has the new words; what is served is the old picture still, and is filtered as such.
    for replica in (follower, assert_as_fresh(world, follower)):
        assert "p10" in ask(replica, {"label": "class-01", "shop": "south"})
        assert "p10" not in ask(replica, {"label": "class-39"})
        assert contents(world, replica)[10] == {"shop": "south", "label": "class-01"}
    platform.work(world, row.id)
    for replica in (follower, assert_as_fresh(world, follower)):
        assert sorted(ask(replica, {"shop": "west"})) == ["new", "p10"]
        assert ask(replica, {"season": "winter"}) == ["p10"]
        assert "p10" not in ask(replica, {"label": "class-01"})
    rollouts.rollback(world, row.id)
    # The vectors of before are back, and with them what the items were.
    for replica in (follower, assert_as_fresh(world, follower)):
        assert contents(world, replica)[10] == {"shop": "south", "label": "class-01"}
    platform.work(world, 1)
    for replica in (follower, assert_as_fresh(world, follower)):
        assert sorted(ask(replica, {"shop": "west"})) == ["new", "p10"]


def test_deleted_items_and_items_without_a_vector_are_not_answered_and_k_is_still_full(world):
    follower = follow(world)
    follower.load_attributes()
    before = ask(follower, {"shop": "north"})
    items.delete_items(world, "pics", before[:3])
    for replica in (follower, assert_as_fresh(world, follower)):
        assert ask(replica, {"shop": "north"}, k=5) == before[3:8]
        assert ask(replica, {"shop": "north"}) == before[3:]
        assert len(ask(replica, None)) == 237


def test_a_change_before_the_plan_is_written_counts_with_the_batch_of_the_plan(world, tmp_path):
    """Such an item gets no late rank under the new rollout: its rank within the plan has the new content."""
    follower, row = follow(world), platform.start(world)
    follower.load_attributes()
    path = pictures(tmp_path / "queries")[0]
    items.update_items(world, "pics", manifest(tmp_path, [("p10", path, "class-39", "west", "")]))
    advance.advance(world, row.id)
    for replica in (follower, assert_as_fresh(world, follower)):
        assert contents(world, replica)[10] == {"shop": "south", "label": "class-01"}
    work_some(world, row.id, 15)
    for replica in (follower, assert_as_fresh(world, follower)):
        assert contents(world, replica)[10] == {"shop": "west", "label": "class-39"}


def test_a_replica_that_is_behind_has_the_attributes_of_its_place(world, tmp_path):
    """Loaded at any place of the log, also when later changes are in the ledger already."""
    row = advance.advance(world, platform.start(world).id)
    behind, paths = follow(world), pictures(tmp_path / "queries")
    places = []
    for number, path in enumerate(paths[:3]):
        items.update_items(world, "pics", manifest(tmp_path, [("p10", path, "", f"shop-{number}", "")]))
        work_some(world, row.id, 1)
        places.append(follow(world))
    for number, replica in enumerate(places):  # their attributes are read now, not then
        assert contents(world, replica)[10] == {"shop": f"shop-{number}"}
    assert contents(world, behind)[10]["shop"] == "south"
    assert_as_fresh(world, behind)


def test_vectors_are_searched_as_their_queries_are(world):
    replica = follow(world)
    query = read_item(replica.items([5])[5].uri)
    encoder = world.encoder(replica.model)
    vectors = encoder.encode([encoder.preprocess(query)])
    where = {"shop": "south"}
    assert replica.search_vectors(vectors, 4, where, path_ids=replica.path.ids) == replica.search(
        [query], 4, where
    )
    for wrong, why in (
        (vectors[:, :5], "n × 32"),
        (vectors[0], "n × 32"),
        (vectors * 2, "length"),
        (vectors * np.nan, "length"),
    ):
        with pytest.raises(UsageError, match=why):
            replica.search_vectors(wrong)


def test_vectors_of_a_model_that_no_longer_serves_are_refused(world):
    replica = follow(world)
    ids, encoder = replica.path.ids, world.encoder(replica.model)
    vectors = encoder.encode([encoder.preprocess(read_item(replica.items([5])[5].uri))])
    platform.start(world)
    replica.catch_up()
    with pytest.raises(StalePathError, match="kin"):
        replica.search_vectors(vectors, path_ids=ids)
    assert issubclass(StalePathError, ConflictError)
    assert replica.search_vectors(vectors, path_ids=replica.path.ids)[0].model == "kin"


def test_attributes_are_told_by_the_command_line_and_over_http_by_both_systems_of_a_canary(
    world, tmp_path, monkeypatch, capsys
):
    path = pictures(tmp_path / "queries")[0]
    row = platform.start(world, canary=50)
    items.update_items(world, "pics", manifest(tmp_path, [("p10", path, "class-39", "west", "winter")]))
    platform.work(world, row.id)
    for name in ("database_url", "broker_url", "data_dir"):
        monkeypatch.setenv(f"HOTREFRESH_{name.upper()}", str(getattr(world.settings, name)))

    def said(*words):
        assert main([*words]) == 0
        return capsys.readouterr().out

    def told(*words):
        return json.loads(said(*words, "-o", "json"))

    before, after = {"shop": "south"}, {"season": "winter", "shop": "west"}
    search = ("gallery", "search", "pics", "--key", "p10", "-k", "240")
    with client_of(world) as opened, Client(str(opened.base_url), TOKEN) as client:
        by_system = {}
        for sticky in map(str, range(12)):
            answer = client.search("pics", key="p10", k=240, sticky=sticky)
            by_system[answer.system] = {hit.key: hit.attributes for hit in answer.hits}
        [batch] = client.search_batch("pics", [{"key": "p10"}], where={"shop": "east"}, k=1)
        monkeypatch.setenv("HOTREFRESH_API_TOKEN", TOKEN)
        there = told(*search, "--server", client._url, "--sticky", "a")
    assert {system: each["p10"] for system, each in by_system.items()} == {"old": before, "new": after}
    assert {key: each for key, each in by_system["old"].items() if key != "p10"} == {
        key: each for key, each in by_system["new"].items() if key != "p10"
    }
    assert batch.hits[0].attributes["shop"] == "east"
    here = told(*search)
    for document, content in ((here, after), (there, {"old": before, "new": after}[there["system"]])):
        assert {hit["key"]: hit["attributes"] for hit in document["hits"]}["p10"] == content
    assert '"shop": "west"' in said(*search)
    [version] = told("ledger", "versions", "pics", "--item", "p10")["versions"]
    assert (version["model"], version["attributes"]) == ("kin", after)
    assert '"shop": "west"' in said("ledger", "versions", "pics", "--items")
    with browser_of(world) as browser:
        page = browser.get("/items", params={"gallery": "pics", "key": "p10"}).text
    assert "shop: west" in page
