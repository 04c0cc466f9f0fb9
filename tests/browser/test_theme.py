"""Light and dark: as the system says, or as somebody chose."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

BRIGHTNESS = """() => {
  const of = value => { const [r, g, b] = value.match(/[\\d.]+/g).map(Number); return (r * 299 + g * 587 + b * 114) / 255000; };
  const style = getComputedStyle(document.body);
  return [of(style.backgroundColor), of(style.color)];
}"""


def is_dark(seen):
    paper, ink = seen.script(BRIGHTNESS)
    assert abs(paper - ink) > 0.6, (paper, ink)
    return paper < ink


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_as_the_system_says_and_follows_it(window, shown, scheme):
    seen = window(shown, color_scheme=scheme).go("/")
    assert is_dark(seen) == (scheme == "dark")
    other = {"light": "dark", "dark": "light"}[scheme]
    seen.page.emulate_media(color_scheme=other)
    assert is_dark(seen) == (other == "dark")
    expect(seen.page.locator("#theme")).to_have_text(scheme.capitalize())


def test_what_somebody_chose_holds_on_every_page_and_whatever_the_system_says(window, shown):
    seen = window(shown, color_scheme="light").go("/")
    seen.page.get_by_role("button", name="Switch to dark colours").click()
    assert is_dark(seen)
    seen.page.get_by_role("link", name="Serving").click()
    seen.page.wait_for_url("**/serving")
    assert is_dark(seen)
    seen.page.reload()
    assert is_dark(seen)
    button = seen.page.get_by_role("button", name="Switch to light colours")
    button.focus()
    seen.page.keyboard.press("Enter")
    assert not is_dark(seen)
    seen.page.emulate_media(color_scheme="dark")
    assert not is_dark(seen)


def test_a_chosen_theme_stands_before_the_first_paint(window, shown):
    """The script that sets it is no deferred one, and stands before the body."""
    seen = window(shown).go("/")
    seen.page.get_by_role("button", name="Switch to dark colours").click()
    seen.page.context.add_init_script(
        "new MutationObserver((_, all) => { if (document.body) { window.first = document.documentElement.dataset.theme; "
        "all.disconnect(); } }).observe(document, { childList: true, subtree: true });"
    )
    seen.page.reload()
    assert seen.script("() => window.first") == "dark"


def test_charts_and_pills_differ_from_their_ground_in_forced_colours(window, shown):
    """High contrast: text and lines are drawn with the system's colours, and nothing is lost."""
    seen = window(shown, forced_colors="active").go("/rollouts/3")
    expect(seen.page.locator("#state .pill").first).to_be_visible()
    strokes = seen.script(
        """() => [...document.querySelectorAll('polyline.line')].map(
          line => [getComputedStyle(line).stroke, getComputedStyle(line.closest('.card')).backgroundColor])"""
    )
    assert strokes
    assert all(line != ground for line, ground in strokes), strokes
