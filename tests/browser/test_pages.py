"""Every page as a browser loads it: nothing goes wrong, nothing is asked of anybody else, nothing sticks out on a phone."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.browser import world
from tests.browser.addresses import NOWHERE, PAGES
from tests.browser.window import PHONE

# What templates print by mistake. A list that is empty says "None."
SLIPS = re.compile(r"\bNone\b(?!\.)|\bnan\b|\bNaN\b|\bundefined\b|datetime\.|<[A-Z]\w+ object")
HEADINGS = "() => [...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))"


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_a_page_loads_with_no_fault_and_asks_nothing_of_anybody_else(look, shown, path):
    seen = look(shown).go(path)
    page = seen.page
    assert page.title().endswith("hotrefresh")
    assert page.locator("main").count() == 1
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    levels = seen.script(HEADINGS)
    assert all(deeper <= before + 1 for before, deeper in itertools.pairwise(levels)), levels
    text = page.locator("body").inner_text()
    assert not SLIPS.search(text), SLIPS.search(text)


# A phone; and what is 1280 wide, at 400 % (WCAG 1.4.10).
@pytest.mark.parametrize("width", [PHONE["width"], 320])
def test_nothing_sticks_out_where_there_is_little_width(look, shown, width):
    seen = look(shown)
    seen.page.set_viewport_size({"width": width, "height": 844})
    for name, path in PAGES.items():
        wide = seen.go(path).script(
            "() => [document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]"
        )
        assert wide[0] <= wide[1] <= width, (name, wide)


def test_nothing_sticks_out_on_a_device_with_a_touch_screen(window, shown):
    """There a page that is too wide makes its window wider instead."""
    seen = window(shown, viewport=PHONE, has_touch=True, is_mobile=True)
    for name in ("halted", "flips", "certificates"):
        wide = seen.go(PAGES[name]).script("() => [document.scrollingElement.scrollWidth, innerWidth]")
        assert wide == [PHONE["width"]] * 2, name


def test_the_browser_enforces_the_content_security_policy(look, shown):
    seen = look(shown).go("/")
    seen.expect_fault("Content Security Policy")
    seen.script(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'window.taken = 1';
          document.body.append(script);
          document.body.insertAdjacentHTML('beforeend', '<p id="styled" style="position: fixed" onclick="taken = 1">x</p>');
          document.getElementById('styled').click();
        }"""
    )
    assert seen.script("() => window.taken") is None
    assert seen.script("() => getComputedStyle(document.getElementById('styled')).position") == "static"
    assert len(seen.faults) >= 3, "script, style and handler"


def test_the_watch_sees_what_goes_wrong(window, shown):
    """Without the policy, which would stop most of it before it begins."""
    seen = window(shown, bypass_csp=True).go("/")
    seen.expect_fault("planted|elsewhere.test|nowhere|console: Failed to load resource")
    with seen.page.expect_event("requestfailed"):
        seen.script("() => { new Image().src = 'http://elsewhere.test/x.png'; }")
    # The page that looks again by itself has answers, too.
    with seen.page.expect_event("response", lambda answer: answer.url.endswith("/nowhere")):
        seen.script("() => { fetch('/nowhere'); }")
    with seen.page.expect_event("pageerror"):
        seen.script("() => { setTimeout(() => { throw new Error('planted'); }); }")
    with seen.page.expect_event("dialog"):
        seen.script("() => { setTimeout(() => alert('planted')); }")
    kinds = {fault.partition(":")[0] for fault in seen.faults}
    assert kinds == {"answer 404", "console", "dialog", "exception", "request failed", "request to elsewhere"}


@pytest.mark.parametrize(("path", "status"), NOWHERE.items(), ids=list(NOWHERE))
def test_an_error_is_a_page_with_a_way_on(look, shown, path, status):
    seen = look(shown)
    seen.expect_fault(str(status))
    assert seen.go(path).status == status
    assert seen.page.get_by_role("alert").inner_text().strip()
    seen.page.get_by_role("link", name="All rollouts").click()
    seen.page.wait_for_url(f"{shown.url}/")
    assert seen.page.get_by_role("heading", name="pics").is_visible()


def test_every_page_is_reached_by_links_alone(look, shown):
    seen, left, reached = look(shown), ["/"], set()
    while left:
        path = left.pop()
        seen.go(path)
        reached.add(path.partition("?")[0])
        for found in seen.script("() => [...document.links].map(each => each.href)"):
            assert found.startswith(f"{shown.url}/"), found
            there = found.removeprefix(shown.url).partition("#")[0]
            plain = there.partition("?")[0]
            if plain not in {each.partition("?")[0] for each in [*left, *reached]}:
                left.append(there)
    wanted = {path.partition("?")[0] for path in PAGES.values()}
    assert wanted <= reached
    assert f"/rollouts/{world.HALTED}/resume" in reached
