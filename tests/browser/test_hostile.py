"""Keys, labels, slices and reasons that a browser could take for its own are text, everywhere."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.browser import world
from tests.browser.window import PICTURES

MADE = "main script, main [onload], main [onerror], main [onmouseover], main img[src='x'], main svg[onload], main b[onmouseover]"
PATHS = {
    "rollouts": "/",
    "rollout": f"/rollouts/{world.HOSTILE}",
    "flips": f"/rollouts/{world.HOSTILE}/flips",
    "items": "/items?gallery=hostile",
    "audit": f"/audit?target={world.HOSTILE}",
    "confirmation": f"/rollouts/{world.HOSTILE}/resume",
}


def assert_inert(seen):
    """Nothing that was written there has run, or become an element."""
    assert seen.script("() => window.taken") is None
    assert seen.page.locator(MADE).count() == 0


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_nothing_runs_on_a_page_that_shows_it(look, shown, path):
    seen = look(shown).go(path)
    assert_inert(seen)
    for each in seen.page.locator("main [title], main strong, main b, main li").all()[:40]:
        each.dispatch_event("mouseover")
    assert_inert(seen)


@pytest.mark.parametrize("key", world.HOSTILE_KEYS, ids=lambda key: key[:12])
def test_an_item_of_any_name_has_a_page_that_is_reached_by_a_click(look, shown, key):
    seen = look(shown).go("/items?gallery=hostile")
    link = seen.page.get_by_role("link", name=key, exact=True)
    expect(link).to_have_text(key)
    link.click()
    expect(seen.page.get_by_role("heading", level=1)).to_have_text(key)
    expect(seen.page.get_by_label("Key")).to_have_value(key)
    expect(seen.page.locator(".facts")).to_contain_text(world.HOSTILE_LABEL)
    assert [each["width"] > 0 for each in seen.script(PICTURES)] == [True]
    assert_inert(seen)


def test_flips_of_hostile_queries_show_their_names_and_pictures(look, shown):
    seen = look(shown).go(f"/rollouts/{world.HOSTILE}/flips")
    cards = seen.page.locator("li.flip")
    assert cards.count() > 5
    for card in cards.all():
        key = card.get_attribute("data-query")
        assert key.startswith(world.HOSTILE_KEYS)
        expect(card.get_by_role("heading", level=2)).to_have_text(key)
        expect(card).to_contain_text(world.HOSTILE_TENANT)
    drawn = seen.script(PICTURES)
    assert all(each["width"] > 0 for each in drawn)
    assert_inert(seen)


def test_a_reason_is_shown_as_it_was_written(look, shown):
    seen = look(shown).go(f"/rollouts/{world.HOSTILE}")
    expect(seen.page.locator("#state [data-metric=reason]")).to_contain_text(world.SCRIPT)
    expect(seen.page.locator("#history")).to_contain_text(world.SCRIPT)


def test_an_update_of_a_live_page_makes_no_element_of_it(look, shown):
    """The page is read again, and what differs is put in place: here the texts of what happened."""
    seen = look(shown).go(f"/rollouts/{world.HOSTILE}")
    seen.script(
        """() => {
          window.made = [];
          new MutationObserver(all => all.forEach(each => each.addedNodes.forEach(node => window.made.push(node.nodeName))))
            .observe(document.getElementById('history'), { childList: true, subtree: true });
          document.querySelectorAll('#history li span').forEach(each => { each.lastChild.data = 'old'; });
        }"""
    )
    expect(seen.page.locator("#history")).to_contain_text(world.SCRIPT)
    assert "SCRIPT" not in seen.script("() => window.made")
    assert_inert(seen)


@pytest.mark.parametrize(
    "address",
    [
        "/items?gallery=hostile&key={}",
        "/items?gallery={}",
        "/audit?actor={}&action={}&target={}",
        "/serving?gallery={}",
        "/certificates?set={}",
        f"/rollouts/{world.HALTED}/flips?kind={{}}",
        f"/rollouts/{world.HALTED}/flips?slice=tenant%3D{{}}",
        f"/rollouts/{world.HALTED}?done={{}}",
        "/{}",
    ],
)
def test_what_stands_in_an_address_is_text_too(look, shown, address):
    seen = look(shown)
    seen.expect_fault("40[04]")
    for text in ('"><script>window.taken=1</script>', "'><img src=x onerror=window.taken=1>"):
        seen.go(address.replace("{}", quote(text, safe="")))
        assert_inert(seen)
