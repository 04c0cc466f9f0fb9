"""The dashboard's pages on a real ledger: the same numbers as everywhere else, names that stay text, and no change by reading."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.api.metrics import LedgerCollector
from orchestrator.api.replicas import Replicas
from orchestrator.dashboard import curves
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import downstream, listings, rollouts
from orchestrator.service.wait import read_status
from tests.engine import platform
from tests.engine.dashboard_server import figures
from tests.engine.dashboard_world import HOSTILE, MINE, TEXT, client, view, world

__all__ = ["client", "view", "world"]  # fixtures

PAGES = [
    "/", MINE, f"{MINE}/flips", f"{MINE}/flips?kind=negative&reference=old_system&k=1", "/rollouts/1", "/rollouts/1/flips",
    "/items", "/items?gallery=pics", "/items?gallery=pics&key=class-03/0.png", "/items?gallery=texts&key=plain", "/serving",
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
        rows = connection.exec_driver_sql(
            "SELECT id, state, reason, generation FROM rollout ORDER BY id"
        ).all()
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


def test_a_throttle_is_shown_with_value_and_limit(world, client, view):
    set_throttle(world, "serving_p95", 0.31, 0.25)
    try:
        page = client.get(MINE)
        (row,) = view("rollout_status", id=2)
        assert row["sub_state"] == "throttled"
        assert figures(page, "sub_state") == [("throttled", {})]
        assert "Throttled by <strong>serving_p95</strong>" in page.text
        for name in ("throttle_value", "throttle_limit"):
            assert figures(page, name) == [(repr(row[name]), {})]
    finally:
        set_throttle(world, None)
    assert figures(client.get(MINE), "throttle_value") == []


def set_throttle(world, *values):
    with world.engine.begin() as connection:
        rollout_queries.set_throttle(connection, 2, *values)


def test_what_could_not_be_embedded_is_listed_with_its_reason(world, client):
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO quarantine (rollout_id, row, reason, message) SELECT 2, i, 'corrupt', %s FROM generate_series(0, 11) i",
            (f"cannot be decoded: {HOSTILE}",),
        )
    try:
        page = client.get(MINE).text
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM quarantine")
    assert page.count(html.escape(f"cannot be decoded: {HOSTILE}")) == 8
    assert HOSTILE not in page
    assert 'href="/items?gallery=pics&amp;key=class-00%2F0.png"' in page
    assert "hotrefresh ledger errors --rollout 2" in page


def test_the_curve_is_drawn_against_random_and_says_where_there_is_none(world, client):
    drawn = client.get(MINE).text
    assert "measured, order entropy" in drawn
    assert "simulated, order random" in drawn
    assert "No curve of a random order" not in drawn
    # The last row of its table is the newest evaluation.
    with world.engine.connect() as connection:
        recall = [
            row["value"]
            for row in read_view(
                connection, "refresh_curve", rollout=2, metric="recall_at_1", against_order="measured"
            )
        ]
    assert f"Recall at 1 on asked: {recall[-1]:.3f} at" in drawn
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM curve_point")
    try:
        assert "No curve of a random order" in client.get(MINE).text
    finally:
        with world.engine.begin() as connection:
            flip_queries.insert_curve_points(connection, 2, [("recall_at_1", "random", 0.0, 0.9)])


def test_open_flips_by_cause_add_up_to_the_open_negative_flips(world, client):
    page = html.unescape(client.get(MINE).text)
    mixed, model = re.search(
        r"Open negative flips on asked: (\d+) of a mixed stage.*?and (\d+) of the new model", page
    ).groups()
    (flips,) = read_status(world, 2).flips
    assert int(mixed) + int(model) == flips["negative_flips"]
    with world.engine.connect() as connection:
        of_model = connection.exec_driver_sql(
            """SELECT count(*) FROM reporting.flip_items WHERE rollout = 2 AND k = 1 AND reference = 'old_system'
               AND healed_seq IS NULL AND cause = 'model'"""
        ).scalar_one()
    assert int(model) == of_model


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
    for words in ("✓ certified", "✕ refused", "not measured", "same model", "among 240 items"):
        assert words in page.text
    assert page.text.count("<tr>") >= 4


def test_the_certificates_page_shows_downstream_modules_with_their_newest_certificate(
    world, client, tmp_path
):
    assert "Downstream modules" not in client.get("/certificates").text
    pictures = str(platform.draw_pictures(tmp_path / "pictures"))
    request = downstream.TrainModuleRequest("labels", "old", pictures, steps=100)
    downstream.train_module(world, request)
    assert "made for old" in client.get("/certificates").text
    assert "not measured" in client.get("/certificates").text
    for loss in (0.0, 1.0):
        found = downstream.certify_module(
            world, downstream.CertifyModuleRequest("labels", "kin", source=pictures, loss=loss)
        )
    table = client.get("/certificates").text.split('id="modules-title"')[1]
    assert table.count('data-label="Verdict"') == 1, "the newest alone"
    assert ("certified" in table, found.reason in table, pictures in table) == (True, True, True)
    assert f'data-label="That model">{found.new_value:.2f}' in table
    downstream.retire_module(world, "labels")
    assert "made for old, retired" in client.get("/certificates").text


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


def test_open_flips_at_each_point_are_those_that_were_open_then(world, view):
    """The changes that the ledger counts between points, against each flip's own life."""
    with world.engine.connect() as connection:
        points = dashboard_queries.measured_points(connection, 2)
        at_one = [row for row in points if row["k"] == 1]
        seqs = sorted({row["seq"] for row in at_one})
        found = curves.open_by_cause(at_one, dashboard_queries.flips_by_cause(connection, 2, seqs), seqs)
    flips = view("flip_items", rollout=2, kind="negative", reference="old_system", k=1)
    assert len(seqs) > 5, "the deployment and some batches"
    for cause, line in found.items():
        assert [count for _, count in line] == [
            sum(
                flip["cause"] == cause
                and flip["opened_seq"] <= seq
                and (flip["healed_seq"] is None or flip["healed_seq"] > seq)
                for flip in flips
            )
            for seq in seqs
        ]
    sums = [
        sum(counts) for counts in zip(*([count for _, count in line] for line in found.values()), strict=True)
    ]
    assert sums == [row["negative_flips"] for row in at_one]


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
            answer = client.get(path)
            page = answer.text
            assert html.escape(f"a gate: {HOSTILE}") in page
            assert figures(answer, "eta_s") == figures(answer, "rate_per_s") == [], "nothing goes on"
            assert HOSTILE not in page
    finally:
        rollouts.resume(world, 2)


@pytest.mark.parametrize("path", PAGES)
def test_no_two_landmarks_of_a_page_have_one_name(client, path):
    named = re.findall(r'<(?:section|article|div|nav)\b[^>]*aria-labelledby="([^"]*)"', client.get(path).text)
    assert sorted(named) == sorted(set(named))


def test_where_open_flips_are_led_to_and_a_missing_curve_is_made(world, client):
    assert (
        'id="to-flips" href="/rollouts/2/flips?kind=negative&amp;reference=old_system&amp;k=1&amp;fate=open"'
        in client.get(MINE).text
    )
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM curve_point")
    try:
        assert "hotrefresh model certify old bad --gallery pics" in client.get(MINE).text
    finally:
        with world.engine.begin() as connection:
            flip_queries.insert_curve_points(connection, 2, [("recall_at_1", "random", 0.0, 0.9)])


def test_a_file_that_is_no_picture_says_so_instead_of_a_broken_mark(world, client):
    whole = client.get("/items?gallery=pics&key=class-03/0.png").text
    assert '<img src="/pictures/item' in whole
    path = Path(unquote(urlsplit(listings.item_uri(world, "pics", "class-03/0.png")).path))
    kept = path.read_bytes()
    path.write_bytes(b"no picture")
    try:
        page = client.get("/items?gallery=pics&key=class-03/0.png").text
    finally:
        path.write_bytes(kept)
    assert "Cannot be shown: " in page
    assert "<img" not in page


def test_a_browser_that_looks_for_an_icon_is_led_to_it(client):
    answer = client.get("/favicon.ico")
    assert answer.status_code == 308
    assert client.get(answer.headers["location"]).headers["content-type"].startswith("image/svg")


def test_a_confirmation_has_the_focus_where_something_is_to_be_done(world, client):
    assert re.search(r'<input id="reason"[^>]* autofocus>', client.get(f"{MINE}/pause").text)
    row = read_status(world, 2).rollout
    said = f"The {row['committed']} embeddings made so far (of {row['total']}) are no longer used"
    assert said in client.get(f"{MINE}/rollback").text
