"""Canary and shadow: who is answered by which system, exactly by it, whatever else happens."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from models.datasets import read_item
from orchestrator.api.replicas import ServedReplica
from orchestrator.context import Context
from orchestrator.core.traffic import NEW, OLD, bucket, in_share
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, items, rollouts
from orchestrator.service import traffic as service
from orchestrator.service.finish import finalize
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.traffic import Traffic
from tests.engine import platform
from tests.engine.api_server import client_of, until
from tests.engine.dashboard_server import browser_of, figures

ROOT = Path(__file__).parents[2]
KEYS = [f"class-{label:02d}/0.png" for label in range(0, 40, 2)]


class Server:
    """A replica and its traffic, followed by hand, as a server's."""

    def __init__(self, context: Context) -> None:
        with transaction(context.engine) as connection:
            gallery = gallery_queries.gallery_by_name(connection, "pics")
        assert gallery is not None
        self.context = context
        self.traffic = Traffic(context)
        self.replica = ServedReplica(context, gallery)
        self.traffic.attach(self.replica)

    def ask(self, key: str, sticky: str | None = None, k: int = 10):
        item = self.replica.item(key)
        content = read_item(item.uri)
        return self.traffic.answer(
            self.replica, lambda system, k: system.search([content], k)[0], k, sticky=sticky, item=item
        )

    def settle(self) -> None:
        """Compare everything that waits, here."""
        while self.traffic.shadow._waiting:
            self.traffic.shadow.compare(self.traffic.shadow._waiting.popleft())
        self.traffic.shadow.flush()


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def server(world):
    made = Server(world)
    yield made
    made.traffic.close()


def sticky_of(rollout_id: int, *, new: bool, percent: float) -> str:
    """An id that is, or is not, among the first `percent`."""
    return next(
        name for name in map(str, range(100_000)) if in_share(bucket(name, rollout_id), percent) == new
    )


def truth(context: Context, model: str, key: str, *, before: int | None, k: int = 10):
    """Rows and scores by brute force: an item's content by a model, over what the ledger says is stored."""
    with snapshot(context.engine) as connection:
        row = model_queries.model_by_name(connection, model)
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        matrix = load_matrix(connection, gallery.id, before=before)
        found = gallery_queries.rows_of_keys(connection, gallery.id, [key])[key]
        [item] = gallery_queries.items_of_rows(connection, gallery.id, [found])
    encoder = context.encoder(row)
    scores = matrix.vectors @ encoder.encode([encoder.preprocess(read_item(item.uri))])[0]
    scores[matrix.version == 0] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return order.tolist(), scores[order], matrix.version[order].tolist()


def check(routed, found) -> None:
    rows, scores, versions = found
    np.testing.assert_allclose([hit.score for hit in routed.answer.hits], scores, atol=1e-5)
    assert [hit.row for hit in routed.answer.hits] == rows
    assert [hit.rollout_id for hit in routed.answer.hits] == versions


def test_both_sides_are_exact_while_the_gallery_is_embedded_anew(world, server):
    row = platform.start(world, canary=50)
    server.replica.catch_up()
    old, new = (sticky_of(row.id, new=side, percent=50) for side in (False, True))
    advance.advance(world, row.id)
    batches = 0

    def after(seq: int) -> None:
        nonlocal batches
        batches += 1
        server.replica.catch_up()
        key = KEYS[batches % len(KEYS)]
        asked = server.ask(key, old), server.ask(key, new)
        assert [each.system for each in asked] == [OLD, NEW]
        assert [each.answer.model for each in asked] == ["old", "kin"]
        check(asked[0], truth(world, "old", key, before=row.id))
        check(asked[1], truth(world, "kin", key, before=None))
        assert row.id not in {hit.rollout_id for hit in asked[0].answer.hits}

    from workers.drain import drain

    assert drain(world, row.id, owner="test", committed=after).failure is None
    assert batches == 15
    assert {hit.rollout_id for hit in server.ask(KEYS[0], new).answer.hits} == {row.id}


def test_no_user_is_answered_by_a_new_model_that_a_canary_of_nought_holds_back(world, server):
    stop, systems, models = threading.Event(), set(), set()

    def ask() -> None:
        while not stop.is_set():
            routed = server.ask(KEYS[0])
            systems.add(routed.system)
            models.add(routed.answer.model)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for each in askers:
        each.start()
    server.replica.follow()
    row = platform.start(world, canary=0)
    until(lambda: OLD in systems)
    rollouts.rollback(world, row.id)
    until(lambda: server.replica.rollout_id != row.id)
    server.traffic.tidy()
    stop.set()
    for each in askers:
        each.join()
    server.replica.close()
    assert (systems, models) == ({None, OLD}, {"old"})
    assert server.traffic._held == {}


def test_a_change_reaches_the_replica_by_its_log_and_at_the_end_the_old_side_is_gone(world, server):
    row = platform.start(world, canary=0)
    server.replica.catch_up()
    sticky = sticky_of(row.id, new=True, percent=10)
    assert server.ask(KEYS[0], sticky).system == OLD
    service.change(world, row.id, 10)
    assert server.replica.catch_up() == 1
    assert server.ask(KEYS[0], sticky).system == NEW
    assert server.ask(KEYS[0], sticky_of(row.id, new=False, percent=10)).system == OLD
    service.change(world, row.id, 100)
    server.replica.catch_up()
    routed = server.ask(KEYS[0], sticky)
    assert (routed.system, routed.answer.model) == (None, "kin")
    assert server.traffic._held == {}
    with transaction(world.engine) as connection:
        assert [each["canary"] for each in read_view(connection, "traffic", rollout=row.id)] == [0, 10, 100]
        audit = read_view(connection, "audit", action="rollout.traffic")
        assert [(each["before"]["canary"], each["after"]["canary"]) for each in audit] == [(0, 10), (10, 100)]


def test_a_server_that_starts_during_a_canary_answers_as_one_that_was_there(world, server):
    row = platform.start(world, canary=30)
    server.replica.catch_up()
    later = Server(world)
    for key in KEYS[:6]:
        mine, other = server.ask(key, key), later.ask(key, key)
        assert (mine.system, mine.answer) == (other.system, other.answer)
    assert {server.ask(KEYS[0], str(n)).system for n in range(50)} == {OLD, NEW}
    assert {server.ask(KEYS[0]).system for _ in range(50)} == {OLD, NEW}, "drawn without a key"
    later.traffic.close()
    assert row.id == server.replica.rollout_id


def test_deleted_items_leave_both_sides_and_late_ones_are_in_the_new_system_only(world, server, tmp_path):
    row = platform.start(world, canary=50)
    server.replica.catch_up()
    old, new = (sticky_of(row.id, new=side, percent=50) for side in (False, True))
    items.delete_items(world, "pics", ["class-04/1.png"])
    added = tmp_path / "added.csv"
    added.write_text(f"key,path,label\nlate.png,{tmp_path}/pictures/class-04/0.png,class-04\n")
    items.add_items(world, "pics", str(added))
    platform.work(world, row.id)
    server.replica.catch_up()
    found = {side: [hit.key for hit in server.ask("class-04/0.png", side).answer.hits] for side in (old, new)}
    assert "class-04/1.png" not in found[old] + found[new]
    assert ("late.png" in found[old], "late.png" in found[new]) == (False, True)
    check(server.ask("class-04/0.png", old), truth(world, "old", "class-04/0.png", before=row.id))


def test_a_killed_ledger_stops_neither_side(world, server, monkeypatch):
    row = platform.start(world, canary=50, shadow=1.0)
    server.replica.catch_up()

    def away(*_: object, **__: object):
        raise ConnectionError("the ledger is away")

    monkeypatch.setattr(world.engine, "connect", away)
    monkeypatch.setattr(world.engine, "begin", away)
    systems = [server.ask(KEYS[0], sticky_of(row.id, new=side, percent=50)).system for side in (False, True)]
    assert systems == [OLD, NEW]


def test_what_is_not_possible_says_in_which_state_the_rollout_is(world):
    row = platform.start(world)
    with pytest.raises(ConflictError, match="is deployed and was started without a canary"):
        service.change(world, row.id, 50)
    rollouts.rollback(world, row.id)
    with pytest.raises(ConflictError, match="is rolled_back: canary is not possible"):
        service.change(world, row.id, 50)
    row = platform.start(world, canary=20)
    with pytest.raises(ConflictError, match="has a canary and cannot be superseded"):
        platform.start(world, to="old", supersede=True)
    platform.work(world, row.id)
    with pytest.raises(ConflictError, match=r"canary: the new system answers 20 %.*rollout promote"):
        finalize(world, row.id)
    service.change(world, row.id, 100)
    with pytest.raises(ConflictError, match="its canary is over"):
        service.change(world, row.id, 50)
    assert finalize(world, row.id).state == "finalized"


def test_a_server_that_may_not_hold_both_says_so(world, server):
    forbidding = Context(
        **{**vars(world), "settings": world.settings.model_copy(update={"hold_old_system": False})}
    )
    held = Server(forbidding)
    row = platform.start(world, canary=10)
    with pytest.raises(ConflictError, match="hold_old_system = false"):
        held.replica.catch_up()
    assert held.ask(KEYS[0]).answer.model == "old", "it stays where it was"
    with pytest.raises(ConflictError, match=f"rollout promote {row.id}"):
        Server(forbidding)
    rollouts.rollback(world, row.id)
    held.replica.catch_up()
    assert held.ask(KEYS[0]).answer.model == "old", "it never held both, and never came to the new one"
    row = platform.start(world, canary=10)
    service.change(world, row.id, 100)
    held.replica.catch_up()
    assert held.ask(KEYS[0]).answer.model == "kin"
    held.traffic.close()


def test_over_http_an_answer_says_its_system_and_a_sticky_id_keeps_it(world):
    with client_of(world) as client:

        def ask(sticky: str | None = None):
            headers = {} if sticky is None else {"X-Hotrefresh-Sticky": sticky}
            return client.post("/search/pics", json={"key": KEYS[0], "k": 3}, headers=headers)

        assert ask().json()["system"] is None
        row = platform.start(world, canary=50)
        until(lambda: ask().json()["system"] is not None)
        for number in range(20):
            expected = NEW if in_share(bucket(str(number), row.id), 50) else OLD
            body = ask(str(number)).json()
            assert (body["system"], body["model"]) == (expected, "kin" if expected == NEW else "old")
            assert (body["rollout"] == row.id) == (expected == NEW)
        assert ask("x" * 201).status_code == 400
        scraped = client.get("/metrics").text
        assert 'hotrefresh_canary_percent{gallery="pics"} 50.0' in scraped
        assert 'hotrefresh_canary_answers_total{system="old"}' in scraped
        rollouts.rollback(world, row.id)
        until(lambda: ask().json()["system"] is None)
        assert ask().json()["model"] == "old"


def test_the_roll_ups_of_a_shadow_are_those_of_brute_force(world, server):
    row = platform.start(world, canary=0, shadow=1.0)
    server.replica.catch_up()
    shared, changed, outcomes = np.zeros(10, np.int64), 0, {}
    for key in KEYS:
        assert server.ask(key, k=3 if key == KEYS[0] else 10).system == OLD
        server.settle()
        asked = server.replica.item(key)
        found = [
            truth(world, model, key, before=row.id if model == "old" else None) for model in ("old", "kin")
        ]
        old, new = (rows for rows, _, _ in found)
        shared += [len(set(old[:depth]) & set(new[:depth])) for depth in range(1, 11)]
        changed += old != new
        right = tuple(
            server.replica.items(rows)[next(r for r in rows if r != asked.row)].label == asked.label
            for rows in (old, new)
        )
        outcomes[right] = outcomes.get(right, 0) + 1
    with transaction(world.engine) as connection:
        [counted] = read_view(connection, "shadow", rollout=row.id)
        samples = read_view(connection, "shadow_samples", rollout=row.id)
        sums = connection.exec_driver_sql("SELECT shared FROM shadow_count").scalar_one()
    assert sums == shared.tolist()
    assert (counted["n"], counted["label_n"], counted["coverage_from"]) == (len(KEYS), len(KEYS), 0)
    assert counted["overlap"] == pytest.approx(shared[9] / (10 * len(KEYS)))
    assert counted["first_changed"] == (len(KEYS) - shared[0]) / len(KEYS)
    assert {
        (True, True): counted["label_both_right"],
        (True, False): counted["label_negative_flips"],
        (False, True): counted["label_positive_flips"],
        (False, False): counted["label_both_wrong"],
    } == {
        each: outcomes.get(each, 0) for each in ((True, True), (True, False), (False, True), (False, False))
    }
    assert changed, "two models answer something differently"
    assert len(samples) == changed
    assert {(each["served"], each["content"]) for each in samples} == {("old", None)}
    assert samples[0]["old_rows"] != samples[0]["new_rows"]
    documented = re.search(r'query = "(.*)"', (ROOT / "docs" / "CANARY.md").read_text()).group(1)
    with world.engine.connect() as connection:
        rate = connection.exec_driver_sql(documented.replace("photos", "pics")).scalar_one()
    assert rate == counted["label_negative_flips"] / len(KEYS)
    with browser_of(world) as browser:
        page = browser.get(f"/rollouts/{row.id}")
    for hook, column in (
        ("shadow_n", "n"),
        ("shadow_overlap", "overlap"),
        ("shadow_label_lost", "label_negative_flips"),
    ):
        assert [float(value) for value, _ in figures(page, hook)] == [counted[column]]
    assert [float(value) for value, _ in figures(page, "canary")] == [0]


def test_a_shadow_never_fails_nor_delays_an_answer_and_what_is_too_much_is_counted(world, server):
    platform.start(world, canary=0, shadow=1.0)
    server.replica.catch_up()
    shadow = server.traffic.shadow
    for _ in range(30):  # nobody compares
        assert server.ask(KEYS[0]).system == OLD
    assert (len(shadow._waiting), shadow.counts["dropped"]) == (8, 22)
    begun, go_on = threading.Event(), threading.Event()

    def broken(k: int):
        begun.set()
        assert go_on.wait(30)
        raise RuntimeError("the other system cannot")

    first = shadow._waiting[0]
    shadow._waiting[0] = type(first)(**{**vars(first), "other": broken})
    shadow.start()
    assert begun.wait(10)
    assert server.ask(KEYS[0]).system == OLD, "answered while the other system hangs"
    go_on.set()
    assert shadow.settle()
    shadow.flush()
    with transaction(world.engine) as connection:
        [counted] = read_view(connection, "shadow")
    assert (counted["dropped"], counted["failed"], counted["n"]) == (22, 1, 8)


def test_counts_that_cannot_be_written_are_kept_and_samples_are_bounded(world, server, monkeypatch):
    row = platform.start(world, canary=0, shadow=1.0)
    server.replica.catch_up()
    monkeypatch.setattr("orchestrator.serving.shadow.MOST_SAMPLES", 3)
    shadow = server.traffic.shadow

    def ask_all() -> None:
        for key in KEYS:
            server.ask(key)
            shadow.compare(shadow._waiting.popleft())

    ask_all()
    with monkeypatch.context() as gone:
        gone.setattr("orchestrator.serving.shadow.transaction", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shadow.flush()
    ask_all()
    shadow.flush()
    shadow.flush()
    with transaction(world.engine) as connection:
        [counted] = read_view(connection, "shadow", rollout=row.id)
        samples = read_view(connection, "shadow_samples", rollout=row.id)
    assert (counted["n"], counted["label_n"]) == (2 * len(KEYS), 2 * len(KEYS))
    assert 0 < len(samples) <= 3


def test_the_command_line_starts_changes_and_ends_a_canary(world, monkeypatch, capsys):
    for name in ("database_url", "broker_url", "data_dir"):
        monkeypatch.setenv(f"HOTREFRESH_{name.upper()}", str(getattr(world.settings, name)))
    row = platform.start(world, canary=0, shadow=0.25)

    def run(*words: str) -> tuple[int, dict]:
        code = main([*words, "-o", "json"])
        printed = capsys.readouterr().out
        return code, json.loads(printed) if printed.startswith("{") else {}

    code, said = run("rollout", "canary", "pics", "10")
    assert (code, said["rollout"], said["canary"], said["shadow"]) == (0, row.id, 10, 0.25)
    assert run("rollout", "canary", "pics", "--shadow", "0")[1]["shadow"] == 0
    assert run("ledger", "shadow", "pics")[0] == 0
    assert run("ledger", "shadow", "pics", "--samples")[0] == 0
    assert run("rollout", "promote", "pics")[1]["canary"] == 100
    assert run("rollout", "canary", "pics", "10")[0] == 4
    assert service.under_way(world, row.id) is None
