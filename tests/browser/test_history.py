"""Versions of an item, serving history, certificates: tables that say what the ledger says."""

from __future__ import annotations

from playwright.sync_api import expect

from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from tests.browser import world
from tests.browser.window import PICTURES


def view(shown, name, **filters):
    with shown.context.engine.connect() as connection:
        return read_view(connection, name, limit=100_000, **filters)


def verdict_of(shown, new):
    with shown.context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        models = [model_queries.model_by_name(connection, name).id for name in (new, "old")]
        return model_queries.newest_certificate(connection, gallery.id, *models, None).verdict


def test_an_item_is_shown_with_its_picture_and_every_rollout_that_touched_it(look, shown):
    version = next(row for row in view(shown, "embedding_versions", gallery="pics") if row["model"] == "far")
    seen = look(shown).go("/items?gallery=pics")
    seen.page.get_by_label("Key").fill(version["item"])
    seen.page.get_by_role("button", name="Show").click()
    expect(seen.page.get_by_role("heading", level=1)).to_have_text(version["item"])
    expect(seen.page.locator(".item .facts")).to_contain_text("far")
    rows = seen.page.locator("tbody tr")
    expect(rows).to_have_count(3)
    assert [rows.nth(n).locator("th").inner_text() for n in range(3)] == ["3", "2", "1"]
    expect(seen.page.locator("tr.current")).to_contain_text("serves now")
    expect(rows.nth(1)).to_contain_text("rolled back")
    assert [each["width"] > 0 for each in seen.script(PICTURES)] == [True]


def test_a_picture_that_is_none_is_said_to_be_none(look, shown):
    seen = look(shown)
    seen.go("/items?gallery=pics&key=class-00%2Ftorn.png")
    expect(seen.page.locator("main .fault")).to_contain_text("Cannot be shown")
    expect(seen.page.locator("main")).to_contain_text("could not be embedded")
    seen.go(f"/rollouts/{world.HALTED}")
    expect(seen.page.locator("#errors")).to_contain_text("class-00/torn.png")
    expect(seen.page.locator("#progress [data-metric=quarantined]")).to_have_attribute("data-value", "1")


def test_every_cell_of_the_heat_map_says_in_words_what_its_colour_says(look, shown):
    seen = look(shown).go("/certificates?set=pics%2Fasked")
    cells = seen.page.locator("table.matrix tbody td")
    assert cells.count() == 4 * 4, "old, kin, far, stranger"
    texts = cells.all_inner_texts()
    assert all(text.strip() for text in texts)
    words = ("certified", "refused", "inconclusive", "same model", "not measured")
    assert all(any(word in text for word in words) for text in texts), texts
    for new, verdict in (("kin", "certified"), ("stranger", "refused")):
        assert verdict_of(shown, new) == verdict
        number = seen.page.locator(f"[data-query_model={new}][data-gallery_model=old]")
        expect(seen.page.locator(".matrix td", has=number)).to_contain_text(verdict)
    colours = set(
        seen.script(
            "() => [...document.querySelectorAll('.matrix tbody td')].map(e => getComputedStyle(e).backgroundColor)"
        )
    )
    assert len(colours) >= 4, "certified, refused, the same model, not measured"
    for scope in ("col", "row"):
        assert seen.page.locator(f"table.matrix th[scope={scope}]").count() >= 4


def test_the_heat_map_of_another_query_set_is_chosen(look, shown):
    seen = look(shown).go("/certificates?set=pics%2Fasked")
    seen.page.get_by_label("Query set").select_option("more/asked")
    seen.page.get_by_role("button", name="Show").click()
    expect(seen.page.locator("table.matrix caption")).to_contain_text("asked of more")


def test_serving_history_names_each_stretch_once(look, shown):
    rows = [row for row in view(shown, "serving_history") if row["gallery"] == "pics"]
    seen = look(shown).go("/serving")
    seen.page.get_by_label("Gallery").select_option("pics")
    seen.page.get_by_role("button", name="Show").click()
    seen.page.wait_for_url("**gallery=pics**")
    expect(seen.page.locator("tbody tr")).to_have_count(len(rows))
    assert len(rows) == 4, "old, kin, old again, far"
    models = seen.page.locator("tbody td[data-label=Model]").all_inner_texts()
    assert models == ["far", "old", "kin", "old"]
    expect(seen.page.get_by_text("serves now")).to_have_count(1)


def test_the_audit_log_is_filtered_by_a_click(look, shown):
    seen = look(shown).go("/audit")
    seen.page.get_by_label("Action").fill("rollout.rolled_back")
    seen.page.get_by_role("button", name="Show").click()
    expect(seen.page.locator("tbody tr")).to_have_count(1)
    expect(seen.page.locator("tbody tr")).to_contain_text("the marketing site complained")
    seen.page.locator("tbody").get_by_role("link", name=str(world.TAKEN_BACK), exact=True).click()
    seen.page.wait_for_url("**target=2**")
    assert seen.page.locator("tbody tr").count() >= 4
