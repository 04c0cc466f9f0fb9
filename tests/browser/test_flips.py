"""The flip explorer: filters, pages, pictures, and numbers that are the ledger's."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from orchestrator.ledger.queries.reporting import read_view
from tests.browser import world
from tests.browser.window import PICTURES

PATH = f"/rollouts/{world.HALTED}/flips"


def ledger_flips(shown, **filters):
    with shown.context.engine.connect() as connection:
        return read_view(connection, "flip_items", limit=100_000, rollout=world.HALTED, **filters)


def number_of_flips(page):
    return int(page.locator("[data-metric=flips]").get_attribute("data-value"))


def keys_on(page):
    return [
        (each.get_attribute("data-query"), int(each.get_attribute("data-k")))
        for each in page.locator("li.flip").all()
    ]


def test_filters_show_exactly_the_flips_of_the_ledger(look, shown):
    seen = look(shown).go(PATH)
    page = seen.page
    assert number_of_flips(page) == len(ledger_flips(shown))
    page.get_by_label("Kind").select_option("negative")
    page.get_by_label("Against").select_option("old_system")
    page.get_by_label("k", exact=True).select_option("1")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**kind=negative**")
    wanted = ledger_flips(shown, kind="negative", reference="old_system", k=1)
    assert number_of_flips(page) == len(wanted) > 20
    assert page.get_by_label("Kind").input_value() == "negative", "the form remembers"
    for cause in ("mixed_stage", "model"):
        page.get_by_label("Cause").select_option(cause)
        page.get_by_role("button", name="Show").click()
        page.wait_for_url(f"**cause={cause}**")
        of_cause = [row for row in wanted if row["cause"] == cause]
        if not of_cause:
            expect(page.locator("main")).to_contain_text("No flip fits")
            continue
        assert number_of_flips(page) == len(of_cause)
        shown_pills = page.locator("li.flip header .pill").all_inner_texts()
        assert cause.replace("_", " ") in shown_pills


def test_open_and_healed_are_told_apart(look, shown):
    wanted = ledger_flips(shown, reference="old_system", k=1)
    healed = [row for row in wanted if row["healed_seq"] is not None]
    assert 0 < len(healed) < len(wanted)
    seen = look(shown)
    for fate, number in (("healed", len(healed)), ("open", len(wanted) - len(healed))):
        seen.go(f"{PATH}?reference=old_system&k=1&fate={fate}")
        assert number_of_flips(seen.page) == number
        expect(seen.page.locator("li.flip .pill", has_text=fate)).to_have_count(
            seen.page.locator("li.flip").count()
        )


def test_a_slice_shows_its_own_queries(look, shown):
    seen = look(shown).go(f"{PATH}?kind=negative&reference=old_system&k=1")
    everybody = number_of_flips(seen.page)
    seen.page.get_by_label("Slice").fill("tenant=acme")
    seen.page.get_by_role("button", name="Show").click()
    seen.page.wait_for_url("**slice=tenant**")
    assert 0 < number_of_flips(seen.page) < everybody
    for text in seen.page.locator("li.flip .fate").all_inner_texts():
        assert "tenant = acme" in text


def test_pages_hold_every_flip_once(look, shown):
    wanted = ledger_flips(shown, kind="negative", reference="old_system", k=1)
    seen = look(shown).go(f"{PATH}?kind=negative&reference=old_system&k=1")
    page, found = seen.page, keys_on(seen.page)
    while page.get_by_role("link", name="Next page").count():
        page.get_by_role("link", name="Next page").click()
        page.wait_for_load_state()
        found += keys_on(page)
        assert "kind=negative" in page.url, "the filters go along"
    assert sorted(found) == sorted((row["query"], row["k"]) for row in wanted)
    last = page.url
    page.get_by_role("link", name="Previous page").click()
    page.wait_for_load_state()
    assert page.url != last
    page.go_back()
    assert page.url == last


def test_every_flip_has_three_pictures_that_are_really_drawn(look, shown):
    seen = look(shown).go(f"{PATH}?kind=negative&reference=old_system&k=1")
    assert seen.page.locator("li.flip img").count() == 3 * seen.page.locator("li.flip").count()
    drawn = seen.script(PICTURES)
    assert all(each["width"] > 0 for each in drawn), drawn
    assert all(each["alt"] for each in drawn)


@pytest.mark.parametrize("place", [0, 7])
def test_a_flip_shows_what_the_ledger_says_of_it(look, shown, place):
    seen = look(shown).go(f"{PATH}?kind=negative&reference=old_system&k=1")
    card = seen.page.locator("li.flip").nth(place)
    key = card.get_attribute("data-query")
    row = next(
        each
        for each in ledger_flips(shown, kind="negative", reference="old_system", k=1)
        if each["query"] == key and f"by log entry {each['opened_seq']}" in card.locator(".fate").inner_text()
    )
    expect(card.get_by_role("link", name=row["old_item"], exact=True)).to_be_visible()
    expect(card.get_by_role("link", name=row["new_item"], exact=True)).to_be_visible()
    expect(card.locator(".cell.right")).to_contain_text(f"{row['old_score']:.3f}")
    expect(card.locator(".cell.wrong")).to_contain_text(f"{row['new_score']:.3f}")
    card.get_by_role("link", name=row["old_item"], exact=True).click()
    expect(seen.page.get_by_role("heading", level=1)).to_have_text(row["old_item"])


def test_from_the_rollout_two_keys_lead_to_who_is_hurt_now(look, shown):
    seen = look(shown).go(f"/rollouts/{world.HALTED}")
    now = int(seen.page.locator("#flips [data-metric=negative_flips]").first.get_attribute("data-value"))
    seen.page.locator("#to-flips").click()
    seen.page.get_by_label("Open or healed").select_option("open")
    seen.page.get_by_role("button", name="Show").click()
    seen.page.wait_for_url("**fate=open**")
    assert number_of_flips(seen.page) == now
