"""The flip explorer on a real ledger: each flip once, with what was compared; and its pictures, of what the ledger names only."""

from __future__ import annotations

import html
import io
import re

import pytest
from PIL import Image

from orchestrator.dashboard.pictures import EDGE
from tests.engine import platform
from tests.engine.dashboard_server import figures
from tests.engine.dashboard_world import MINE, client, view, world

__all__ = ["client", "view", "world"]  # fixtures


def keys_on(page):
    """(query, kind, reference, k) of the flips on a page."""
    return [
        tuple(html.unescape(value) for value in found)
        for found in re.findall(
            r'data-query="([^"]*)" data-kind="(\w+)" data-reference="(\w+)" data-k="(\d+)"', page.text
        )
    ]


FILTERS = {
    "": "true", "kind=negative": "kind = 'negative'", "kind=positive": "kind = 'positive'",
    "reference=previous_stage": "reference = 'previous_stage'", "cause=mixed_stage": "cause = 'mixed_stage'",
    "cause=model": "cause = 'model'", "k=3": "k = 3", "fate=open": "healed_seq IS NULL", "fate=healed": "healed_seq IS NOT NULL",
    "queryset=asked&kind=negative": "kind = 'negative'", "queryset=other": "false",
    "slice=tenant=acme": "attributes ->> 'tenant' = 'acme'",
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
    assert len(expected) or condition in ("false", "cause = 'model'"), (
        "a filter that nothing passes tests nothing"
    )


def test_a_flip_shows_both_answers_with_scores_and_the_versions_compared(client, view):
    first = view("flip_items", rollout=2, kind="negative", reference="old_system", k=1)[0]
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
    cards = client.get(f"{MINE}/flips?reference=old_system&k=1").text.split("<article")[1:]
    assert not all(renewed for _, _, renewed in rows), "some were compared before their batch"
    for (query, key, renewed), card in zip(rows, cards, strict=True):
        assert f">{query}</h2>" in card
        new = card[card.index("First answer when it flipped") :]
        assert f"key={key.replace('/', '%2F')}" in new
        model = re.search(r"embedded by <strong>(\w+)</strong>", new).group(1)
        assert model == ("bad" if renewed else "old"), (query, key)


def test_pictures_are_small_and_of_what_the_ledger_names(world, client, tmp_path_factory):
    answer = client.get("/pictures/item", params={"gallery": "pics", "key": "class-03/0.png"})
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (platform.EDGE, platform.EDGE)
    large = tmp_path_factory.mktemp("large") / "large.png"
    Image.new("RGB", (900, 300)).save(large)
    with world.engine.begin() as connection:
        kept = connection.exec_driver_sql(
            "SELECT uri FROM item WHERE gallery_id = 1 AND key = 'class-39/5.png'"
        ).scalar_one()
        connection.exec_driver_sql(
            "UPDATE item SET uri = %s WHERE gallery_id = 1 AND key = 'class-39/5.png'", (f"file:{large}",)
        )
    try:
        answer = client.get("/pictures/item", params={"gallery": "pics", "key": "class-39/5.png"})
    finally:
        with world.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE item SET uri = %s WHERE gallery_id = 1 AND key = 'class-39/5.png'", (kept,)
            )
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


def test_not_even_the_path_of_a_picture_that_is_there(world, client):
    path = world.settings.data_dir.parent / "pictures" / "class-03" / "0.png"
    assert path.is_file()
    for key in (str(path), f"file:{path}", f"file://{path}"):
        for address, more in (("/pictures/item", {}), ("/pictures/query", {"queryset": "asked"})):
            assert client.get(address, params={"gallery": "pics", "key": key, **more}).status_code == 404


def test_static_files_are_ours_only(client):
    assert client.get("/static/dashboard.css").status_code == 200
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2ftemplates/base.html",
        "/static/",
    ):
        assert client.get(path).status_code == 404


def test_an_item_of_a_gallery_without_pictures_is_no_picture(client):
    answer = client.get("/pictures/item", params={"gallery": "texts", "key": "plain"})
    assert answer.status_code == 404
