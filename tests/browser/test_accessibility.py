"""axe-core finds nothing on any page, in light and in dark; Tab comes to every control, and it can be seen where it is."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.browser.addresses import DIFFERENT, PAGES
from tests.browser.keys import stops
from tests.browser.window import PHONE

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# What a scheme can change.
COLOURS = ["color-contrast", "link-in-text-block"]


def violations(seen, rules=RULES):
    """Each broken rule with the first places where it is broken."""
    if not seen.script("() => 'axe' in window"):
        seen.page.evaluate(AXE_SCRIPT)
    options = json.dumps({"runOnly": rules, "resultTypes": ["violations"]})
    found = seen.script(f"() => axe.run(document, {options})")["violations"]
    return [(each["id"], [node["html"][:160] for node in each["nodes"][:3]]) for each in found]


@pytest.mark.parametrize("path", DIFFERENT.values(), ids=DIFFERENT)
def test_axe_finds_nothing_in_light_and_in_dark(look, shown, path):
    seen = look(shown).go(path)
    assert violations(seen) == []
    seen.page.emulate_media(color_scheme="dark")
    assert violations(seen, COLOURS) == []


def test_axe_finds_nothing_where_one_signs_in(look, locked):
    assert violations(look(locked).go("/sign-in")) == []


def test_axe_finds_nothing_on_a_page_of_an_error_and_on_a_phone(look, shown):
    seen = look(shown)
    seen.page.set_viewport_size(PHONE)
    seen.expect_fault("404")
    for path in ("/nowhere", PAGES["halted"], PAGES["flips"], PAGES["certificates"]):
        assert violations(seen.go(path)) == [], path


def test_axe_does_find_faults(look, shown):
    seen = look(shown).go(PAGES["certificates"])
    seen.script(
        "() => { document.querySelector('label').remove(); document.documentElement.removeAttribute('lang'); }"
    )
    assert {rule for rule, _ in violations(seen)} >= {"select-name", "html-has-lang"}


@pytest.mark.parametrize("path", DIFFERENT.values(), ids=DIFFERENT)
def test_tab_comes_to_every_control_in_order_and_its_place_is_seen(look, shown, path):
    seen = look(shown).go(path)
    found = stops(seen.page)
    places = [stop["place"] for stop in found]
    controls = seen.script("() => window.controls.length")
    assert places == sorted(places), "in the order of the page"
    assert set(range(controls)) <= set(places), [
        seen.script(f"() => window.controls[{place}].outerHTML.slice(0, 120)")
        for place in sorted(set(range(controls)) - set(places))[:5]
    ]
    assert [stop["markup"] for stop in found if not stop["drawn"]] == [], "no focus ring"
    assert [(stop["markup"], stop["covered"]) for stop in found if stop["covered"]] == []


def test_the_first_tab_offers_to_skip_to_the_content(look, shown):
    seen = look(shown).go("/")
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Enter")
    assert seen.script("() => document.activeElement.id") == "content"
    seen.page.keyboard.press("Tab")
    assert seen.script("() => document.activeElement.closest('main') !== null")
