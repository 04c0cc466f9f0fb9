"""The dashboard's pages on a real ledger, half-way through a rollout of a model that takes two classes for each other."""

from __future__ import annotations

import html
import io
import re
import threading

import psycopg
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.api.metrics import LedgerCollector
from orchestrator.api.replicas import Replicas
from orchestrator.bootstrap import open_context
from orchestrator.dashboard.pictures import EDGE
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, galleries, rollouts, training
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.wait import read_status
from orchestrator.settings import Settings
from tests.engine import platform
from tests.engine.dashboard_server import browser_of, figures
from workers.drain import drain

GATES = [
    {"measure": "negative_flip_rate", "limit": 0.0001, "minimum_n": 100, "effect": "alert"},
    {"name": "rehearsal", "measure": "negative_flip_rate", "limit": 0.9, "minimum_n": 10, "dry_run": True},
    {"name": "many", "measure": "recall_loss", "limit": 0.5, "minimum_n": 100_000, "effect": "alert"},
]
HOSTILE = "<script>alert(1)</script>"
TEXT = "<b>bold</b> & 'quoted' <img src=x onerror=alert(2)>"
MINE = "/rollouts/2"


@pytest.fixture(scope="module")
def world(servers, migrated_template, tmp_path_factory):
    """`pics` is refreshed to `bad`, 7 of 15 batches are committed and evaluated; `texts` has names that look like markup."""
    base = servers.database_url.rsplit("/", 1)[0]
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE dashboard_pages TEMPLATE {migrated_template}")
    folder = tmp_path_factory.mktemp("dashboard")
    settings = Settings(
        database_url=f"{base}/dashboard_pages", broker_url=servers.broker_url.rsplit("/", 1)[0] + "/15",
        data_dir=folder / "data", lease_s=2.0, heartbeat_s=0.3, batch_size=16, gate=GATES, flip_ks=[1, 3],
    )  # fmt: skip
    with open_context(settings) as context:
        platform.embedded_gallery(context, folder)
        _import_bad(context, folder)
        row = advance.advance(context, platform.start(context, "bad").id)
        _some_batches(context, row.id, 7)
        evaluate_rollout(context, row.id, {})
        _make_texts(context, folder)
        with context.engine.begin() as connection:
            connection.exec_driver_sql(
                """UPDATE query SET attributes = jsonb_build_object('tenant', CASE WHEN mod(no, 2) = 0 THEN 'acme' ELSE 'b&b' END)"""
            )
            flip_queries.insert_curve_points(
                connection, row.id, [("recall_at_1", "random", 0.0, 0.9), ("recall_at_1", "random", 1.0, 0.95)]
            )
        yield context
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE dashboard_pages WITH (FORCE)")


def _import_bad(context, folder):
    training.import_factory(
        context, "bad", "tests.engine.swapped:Swapped",
        {"encoder": str(folder / "old"), "pictures": str(folder / "pictures"), "pairs": [["class-03", "class-17"]]},
    )  # fmt: skip
    with context.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        for query_model, verdict in (("bad", "certified"), ("kin", "refused")):
            model_queries.insert_certificate(
                connection, adapter_id=None, verdict=verdict, reason="by hand", measured={"new_old": 0.25, "old_old": 0.5},
                query_model_id=model_queries.model_by_name(connection, query_model).id,
                gallery_model_id=model_queries.model_by_name(connection, "bad" if query_model == "kin" else "old").id,
                query_set_id=gallery_queries.query_set_by_name(connection, gallery.id, "asked").id,
            )  # fmt: skip


def _make_texts(context, folder):
    (folder / "texts.csv").write_text(f'key,text,label\n{HOSTILE},"{TEXT}",{HOSTILE}\nplain,words,a\n')
    galleries.create_gallery(context, "texts", str(folder / "texts.csv"))


def _some_batches(context, rollout_id, count):
    stop, done = threading.Event(), []

    def committed(seq):
        done.append(seq)
        if len(done) >= count:
            stop.set()

    drain(context, rollout_id, owner="test", stop=stop, committed=committed)


@pytest.fixture(scope="module")
def client(world):
    with browser_of(world) as opened:
        yield opened


@pytest.fixture
def view(world):
    def rows(name, **filters):
        with world.engine.connect() as connection:
            return read_view(connection, name, limit=5000, **filters)

    return rows


PAGES = [
    "/", MINE, f"{MINE}/flips", f"{MINE}/flips?kind=negative&reference=old_system&k=1", "/rollouts/1", "/rollouts/1/flips", "/items",
    "/items?gallery=pics", "/items?gallery=pics&key=class-03/0.png", "/items?gallery=texts&key=plain", "/serving",
    "/serving?gallery=pics", "/certificates", "/certificates?set=pics/asked", "/audit", "/audit?action=rollout.planned",
    f"{MINE}/pause", f"{MINE}/rollback", f"{MINE}/cancel", f"{MINE}/finalize", f"{MINE}/resume",
]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_a_page_answers_with_a_title_and_nothing_inline(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert re.search(r"<title>.+ · hotrefresh</title>", answer.text)
    assert len(re.findall(r"<h1\b", answer.text)) == 1
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="/static/dashboard.js">']
    assert not re.search(r"\sstyle=|\son[a-z]+=\"", answer.text)
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PAGES)
def test_reading_a_page_changes_nothing(world, client, path):
    before = _state(world)
    client.get(path)
    client.head(path)
    assert _state(world) == before


def _state(world):
    with world.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT id, state, reason, generation FROM rollout ORDER BY id").all()
        return rows, connection.exec_driver_sql("SELECT count(*) FROM audit").scalar_one()


def test_the_numbers_of_a_rollout_are_those_of_status_views_and_metrics(world, client, view):
    page, status = client.get(MINE), read_status(world, 2)
    row = status.rollout
    assert 0 < row["coverage"] < 1
    for name in ("coverage", "committed", "total", "pending", "leased", "quarantined"):
        assert {value for value, _ in figures(page, name)} == {repr(row[name])}, name
    assert figures(page, "state") == [("backfilling", {})]
    assert figures(page, "workers_alive") == [(str(status.workers_alive), {})]
    shown = {labels["model"]: float(value) for value, labels in figures(page, "coverage_ratio")}
    assert shown == {each["model"]: each["ratio"] for each in view("coverage_by_model", gallery="pics")}

    (flips,) = status.flips
    assert flips["negative_flips"] > 0
    newest = view("flip_summary", rollout=2, k=1, slice="all")[-1]
    for name in ("negative_flips", "positive_flips", "n", "nfr", "pfr"):
        ((value, labels),) = figures(page, name)
        assert labels == {"queryset": "asked"}
        assert float(value) == flips[name] == newest[name], name

    gates = {each["gate"]: each for each in status.gates}
    assert set(gates) == {"negative_flip_rate", "rehearsal", "many"}
    results = {labels["gate"]: value for value, labels in figures(page, "gate_result")}
    assert results == {"negative_flip_rate": "fail", "rehearsal": "pass", "many": "inconclusive"}
    decided = {each["gate"]: each for each in view("gate_decisions", rollout=2) if each["newest"]}
    for hook, column in (("gate_value", "value"), ("gate_limit", "limit"), ("gate_sample_n", "sample_n")):
        numbers = {labels["gate"]: float(value) for value, labels in figures(page, hook)}
        assert numbers == {gate: each[column] for gate, each in gates.items()}
        assert numbers == {gate: each[column] for gate, each in decided.items()}

    text = _metrics(world)
    assert f'hotrefresh_coverage_ratio{{gallery="pics",model="bad"}} {shown["bad"]}' in text
    assert f'hotrefresh_negative_flip_ratio{{queryset="pics/asked"}} {flips["nfr"]}' in text
    assert f'hotrefresh_items{{rollout="2",state="committed"}} {float(row["committed"])}' in text
    value = gates["negative_flip_rate"]["value"]
    assert f'hotrefresh_gate_value{{gate="negative_flip_rate",queryset="asked",rollout="2"}} {value}' in text


def _metrics(world):
    registry = CollectorRegistry()
    registry.register(LedgerCollector(world, Replicas(world)))
    return generate_latest(registry).decode()


def test_the_overview_shows_the_same_numbers_of_every_gallery(world, client):
    page, status = client.get("/"), read_status(world, 2)
    of_mine = {name: [value for value, has in figures(page, name) if has.get("rollout") == "2"] for name in (
        "coverage", "committed", "negative_flips", "nfr", "positive_flips")}  # fmt: skip
    (flips,) = status.flips
    assert of_mine == {
        "coverage": [repr(status.rollout["coverage"])], "committed": [str(status.rollout["committed"])],
        "negative_flips": [str(flips["negative_flips"])], "nfr": [repr(flips["nfr"])],
        "positive_flips": [str(flips["positive_flips"])],
    }  # fmt: skip
    assert "served by <strong>bad</strong>" in page.text
    assert "nothing serves it yet" in page.text
    assert "hotrefresh gallery embed texts" in page.text


def test_the_queue_s_bands_are_the_view_s(client, view):
    page = client.get(MINE)
    depth = {int(labels["band"]): int(value) for value, labels in figures(page, "queue_depth")}
    assert depth == {row["band"]: row["depth"] for row in view("queue_status", rollout=2)}
    assert sum(depth.values()) > 0


def test_the_curve_is_drawn_against_random_and_says_where_there_is_none(world, client):
    drawn = client.get(MINE).text
    assert "measured, order entropy" in drawn
    assert "simulated, order random" in drawn
    assert "No curve of a random order" not in drawn
    # The last row of its table is the newest evaluation.
    (flips,) = read_status(world, 2).flips
    with world.engine.connect() as connection:
        recall = [
            row["value"]
            for row in read_view(connection, "refresh_curve", rollout=2, metric="recall_at_1", against_order="measured")
        ]
    assert f"Recall at 1 on asked: {recall[-1]:.3f} at" in drawn
    assert recall[0] == pytest.approx(recall[0])
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM curve_point")
    try:
        assert "No curve of a random order" in client.get(MINE).text
    finally:
        with world.engine.begin() as connection:
            flip_queries.insert_curve_points(connection, 2, [("recall_at_1", "random", 0.0, 0.9)])


def test_open_flips_by_cause_add_up_to_the_open_negative_flips(world, client):
    page = html.unescape(client.get(MINE).text)
    mixed, model = re.search(r"Open negative flips on asked: (\d+) of a mixed stage.*?and (\d+) of the new model", page).groups()
    (flips,) = read_status(world, 2).flips
    assert int(mixed) + int(model) == flips["negative_flips"]
    with world.engine.connect() as connection:
        of_model = connection.exec_driver_sql(
            """SELECT count(*) FROM reporting.flip_items WHERE rollout = 2 AND k = 1 AND reference = 'old_system'
               AND healed_seq IS NULL AND cause = 'model'"""
        ).scalar_one()
    assert int(model) == of_model


def keys_on(page):
    """(query, kind, reference, k) of the flips on a page."""
    return [
        tuple(html.unescape(value) for value in found)
        for found in re.findall(r'data-query="([^"]*)" data-kind="(\w+)" data-reference="(\w+)" data-k="(\d+)"', page.text)
    ]


FILTERS = {
    "": "true", "kind=negative": "kind = 'negative'", "kind=positive": "kind = 'positive'",
    "reference=previous_stage": "reference = 'previous_stage'", "cause=mixed_stage": "cause = 'mixed_stage'",
    "cause=model": "cause = 'model'", "k=3": "k = 3", "fate=open": "healed_seq IS NULL", "fate=healed": "healed_seq IS NOT NULL",
    "queryset=asked&kind=negative": "kind = 'negative'", "queryset=other": "false", "slice=tenant=acme": "attributes ->> 'tenant' = 'acme'",
    "slice=tenant%3Db%26b&k=1": "attributes ->> 'tenant' = 'b&b' AND k = 1",
}  # fmt: skip


@pytest.mark.parametrize(("asked", "condition"), FILTERS.items())
def test_filters_and_pages_of_flips_show_each_flip_once_and_no_other(world, client, asked, condition):
    with world.engine.connect() as connection:
        expected = connection.exec_driver_sql(
            f"""SELECT query, kind, reference, k::text FROM reporting.flip_items WHERE rollout = 2 AND {condition}
                ORDER BY opened_seq, queryset, query, k, reference"""
        ).all()
    seen, path = [], f"{MINE}/flips?{asked}"
    while path:
        page = client.get(path)
        seen += keys_on(page)
        found = re.search(r'rel="next" href="([^"]*)"', page.text)
        path = html.unescape(found.group(1)) if found else None
        if expected:
            assert figures(page, "flips") == [(str(len(expected)), {})]
    assert seen == [tuple(row) for row in expected]
    assert len(expected) or condition in ("false", "cause = 'model'"), "a filter that nothing passes tests nothing"


def test_a_flip_shows_both_answers_with_scores_and_the_versions_compared(client, view):
    flips = [
        row for row in view("flip_items", rollout=2, kind="negative", reference="old_system", k=1) if row["query"].startswith("class-03/")
    ]  # fmt: skip
    first = flips[0]
    page = client.get(f"{MINE}/flips?kind=negative&reference=old_system&k=1")
    card = page.text[page.text.index(f'data-query="{first["query"]}"') :]
    card = card[: card.index("</article>")]
    assert [float(value) for value, _ in re.findall(r'data-value="([^"]*)"()', card) if value.startswith("0.")] == [
        first["old_score"], first["new_score"],
    ]  # fmt: skip
    assert "embedded by <strong>old</strong>" in card, "what the old system compared"
    for address in (
        f"/pictures/query?gallery=pics&queryset=asked&key={first['query'].replace('/', '%2F')}",
        f"/pictures/item?gallery=pics&key={first['old_item'].replace('/', '%2F')}",
        f"/pictures/item?gallery=pics&key={first['new_item'].replace('/', '%2F')}",
    ):
        assert html.escape(address) in card
        assert client.get(address).headers["content-type"] == "image/png"


def test_the_version_at_a_flip_is_that_of_the_batch_committed_by_then(world, client):
    """Every new answer was compared with `bad`'s embedding exactly where its batch was committed by that log entry."""
    with world.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            """SELECT f.query, f.new_item, b.seq <= f.opened_seq AS renewed FROM reporting.flip_items f
               JOIN item i ON i.key = f.new_item AND i.gallery_id = 1
               JOIN LATERAL (SELECT rank_of(2, i.row) AS rank) p ON true
               JOIN batch b ON b.rollout_id = 2 AND p.rank >= b.first_rank AND p.rank < b.first_rank + b.n
               WHERE f.rollout = 2 AND f.k = 1 AND f.reference = 'old_system' ORDER BY f.opened_seq, f.query LIMIT 20"""
        ).all()
    page = client.get(f"{MINE}/flips?reference=old_system&k=1").text
    assert {renewed for _, _, renewed in rows} >= {False} or {renewed for _, _, renewed in rows} >= {None}
    for card in page.split("<article")[1:]:
        new = card[card.index("First answer when it flipped") :]
        key = html.unescape(re.search(r'href="/items\?gallery=pics&amp;key=([^"]*)"', new).group(1)).replace("%2F", "/")
        query = html.unescape(re.search(r"<h2[^>]*>([^<]*)</h2>", card).group(1))
        (renewed,) = {bool(r) for q, k, r in rows if (q, k) == (query, key)}
        model = re.search(r"embedded by <strong>(\w+)</strong>", new).group(1)
        assert model == ("bad" if renewed else "old"), (query, key)


def test_pictures_are_small_and_of_what_the_ledger_names(world, client, tmp_path_factory):
    answer = client.get("/pictures/item", params={"gallery": "pics", "key": "class-03/0.png"})
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (platform.EDGE, platform.EDGE)
    large = tmp_path_factory.mktemp("large") / "large.png"
    Image.new("RGB", (900, 300)).save(large)
    with world.engine.begin() as connection:
        kept = connection.exec_driver_sql("SELECT uri FROM item WHERE gallery_id = 1 AND key = 'class-39/5.png'").scalar_one()
        connection.exec_driver_sql("UPDATE item SET uri = %s WHERE gallery_id = 1 AND key = 'class-39/5.png'", (f"file:{large}",))
    try:
        answer = client.get("/pictures/item", params={"gallery": "pics", "key": "class-39/5.png"})
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE item SET uri = %s WHERE gallery_id = 1 AND key = 'class-39/5.png'", (kept,))
    assert Image.open(io.BytesIO(answer.content)).size == (EDGE, EDGE // 3)


@pytest.mark.parametrize(
    "key",
    ["../../../../etc/passwd", "/etc/passwd", "file:/etc/passwd", "file:///etc/passwd", "class-03/../class-03/0.png", "", "nul\0",
     "%2e%2e/%2e%2e/etc/passwd", "class-03"],
)  # fmt: skip
def test_no_path_in_a_request_is_ever_read(client, key):
    for address, more in (("/pictures/item", {}), ("/pictures/query", {"queryset": "asked"})):
        answer = client.get(address, params={"gallery": "pics", "key": key, **more})
        assert answer.status_code == 404
        assert "root:" not in answer.text


def test_static_files_are_ours_only(client):
    assert client.get("/static/dashboard.css").status_code == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%2e%2e%2ftemplates/base.html", "/static/"):
        assert client.get(path).status_code == 404


def test_an_item_of_a_gallery_without_pictures_is_no_picture(client):
    answer = client.get("/pictures/item", params={"gallery": "texts", "key": "plain"})
    assert answer.status_code == 404


def test_names_and_texts_that_look_like_markup_are_shown_as_text(client):
    page = client.get("/items", params={"gallery": "texts", "key": HOSTILE}).text
    assert html.escape(HOSTILE) in page
    assert html.escape(TEXT, quote=False).replace("'", "&#39;") in page
    assert HOSTILE not in page
    assert TEXT not in page
    listed = client.get("/items", params={"gallery": "texts"}).text
    assert HOSTILE not in listed


def test_an_item_s_page_knows_every_rollout_and_what_serves_it_now(world, client, view):
    rows = {row["item"]: row for row in view("embedding_versions", gallery="pics")}
    renewed = next(row for row in rows.values() if row["model"] == "bad")
    waiting = next(row for row in rows.values() if row["model"] == "old")
    page = client.get("/items", params={"gallery": "pics", "key": renewed["item"]}).text
    assert 'the embedding of <strong>bad</strong>, of <a href="/rollouts/2">' in page
    assert page.count("serves now") == 1
    assert 'href="/rollouts/1">1</a>' in page
    page = client.get("/items", params={"gallery": "pics", "key": waiting["item"]}).text
    assert 'the embedding of <strong>old</strong>, of <a href="/rollouts/1">' in page
    assert "waits, its batch is pending" in page


def test_the_serving_history_is_the_view_newest_first(client, view):
    page = client.get("/serving?gallery=pics").text
    rows = view("serving_history", gallery="pics")
    shown = re.findall(r'data-label="Model"><strong>(\w+)</strong>', page)
    assert shown == [row["model"] for row in reversed(rows)] == ["bad", "old"]
    assert page.count("serves now") == 1
    for row in rows:
        assert f"{row['valid_from']:%Y-%m-%d %H:%M:%S} UTC" in page


def test_the_certificate_matrix_says_verdict_and_number(client):
    page = client.get("/certificates?set=pics/asked")
    shown = {(has["query_model"], has["gallery_model"]): value for value, has in figures(page, "recall")}
    assert shown["bad", "old"] == "0.25"
    assert shown["kin", "bad"] == "0.25"
    assert float(shown["old", "old"]) > 0.9, "the pair that was really measured came first"
    for words in ("✓ certified", "✕ refused", "not measured", "same model"):
        assert words in page.text
    assert page.text.count("<tr>") >= 4


def test_the_audit_log_is_paged_and_filtered(world, client, view):
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO audit (actor, action, target) SELECT 'many', 'test.row', i::text FROM generate_series(1, 120) i"
        )
    path, seen = "/audit?actor=many", []
    while path:
        page = client.get(path)
        seen += re.findall(r'data-label="To what"><a href="[^"]*">(\d+)</a>', page.text)
        found = re.search(r'rel="next" href="([^"]*)"', page.text)
        path = html.unescape(found.group(1)) if found else None
    assert sorted(map(int, seen)) == list(range(1, 121))
    planned = client.get("/audit?action=rollout.planned").text
    assert planned.count('data-label="What"') == len(view("audit", action="rollout.planned")) == 2
    assert "No row fits" in client.get("/audit?actor=nobody").text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404), ("/rollouts/99", 404), ("/rollouts/99999999999999999999", 404), ("/rollouts/x", 404),
        ("/rollouts/99/flips", 404), (f"{MINE}/explode", 404), (f"{MINE}/flips?kind=sideways", 400), ("/items?gallery=nope", 404),
        ("/items?gallery=pics&key=nope", 404), ("/items?gallery=pics&key=%00", 404), ("/serving?gallery=nope", 404),
        ("/certificates?set=nope", 404), ("/items?gallery=pics&key=%ff", 404), (f"{MINE}/flips?slice=tenant=%00", 200),
        (f"{MINE}/flips?page=99999999999", 200), ("/audit?page=100000&actor=%00", 200), (f"{MINE}/flips?queryset=%ed%a0%80", 200),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_on_a_page(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert "Traceback" not in answer.text


def test_a_rollout_s_reason_is_on_its_page_and_the_overview(world, client):
    rollouts.pause(world, 2, f"a gate: {HOSTILE}")
    try:
        for path in (MINE, "/", f"{MINE}/resume"):
            page = client.get(path).text
            assert html.escape(f"a gate: {HOSTILE}") in page
            assert HOSTILE not in page
    finally:
        rollouts.resume(world, 2)
