"""A page that is open shows what the ledger says, by itself."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from orchestrator.service import rollouts
from tests.browser import world

PAGE = f"/rollouts/{world.GOES_ON}"
COMMITTED = "#progress [data-metric=committed]"


def committed(own):
    return rollouts.reread(own.context, world.GOES_ON).committed_items


def test_a_page_shows_a_batch_that_is_committed_while_it_is_open(look, own):
    seen = look(own).go(PAGE)
    before = committed(own)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(before))
    points = seen.page.locator("#curve polyline.measured, #curves polyline.measured, polyline.measured").first
    drawn = points.get_attribute("points")
    world.work_some(own.context, world.GOES_ON, 3)
    after = committed(own)
    assert after > before
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(after))
    expect(seen.page.locator(COMMITTED)).to_have_text(f"{after:,}")
    expect(points).not_to_have_attribute("points", drawn)
    assert seen.page.title().startswith(f"{after / 241:.1%}".rstrip("%"))


def test_the_first_page_follows_too(look, own):
    seen = look(own).go("/")
    world.work_some(own.context, world.GOES_ON, 1)
    card = seen.page.locator("[data-gallery=more]")
    expect(card.locator("[data-metric=committed]")).to_have_attribute("data-value", str(committed(own)))


def test_an_update_leaves_focus_and_what_was_opened_as_they_are(look, own):
    seen = look(own).go(PAGE)
    opened = seen.page.locator("details").first
    opened.locator("summary").click()
    seen.page.locator("#act-pause").focus()
    world.work_some(own.context, world.GOES_ON, 3)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(committed(own)))
    assert seen.script("() => document.activeElement.id") == "act-pause"
    assert opened.evaluate("each => each.open")


def test_a_state_that_changes_is_said_to_those_who_listen(look, own):
    seen = look(own).go(PAGE)
    spoken = seen.page.locator("#spoken")
    assert spoken.get_attribute("aria-live") == "polite"
    expect(spoken).to_have_text(re.compile("^more is backfilling"))
    rollouts.pause(own.context, world.GOES_ON, "from a terminal")
    expect(spoken).to_have_text(re.compile("^more is paused.*from a terminal"))
    expect(seen.page.locator("#state .pill").first).to_have_text("paused")
    expect(seen.page.locator("#act-resume")).to_be_visible()
    expect(seen.page.locator("#act-pause")).to_have_count(0)


def test_updates_can_be_stopped(window, own):
    seen = window(own).go(PAGE)
    seen.page.get_by_role("button", name="Stop updating").click()
    button = seen.page.get_by_role("button", name="Go on updating")
    expect(button).to_be_visible()
    before = committed(own)
    world.work_some(own.context, world.GOES_ON, 1)
    seen.page.clock.install()
    seen.page.clock.fast_forward(60_000)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(before))
    button.click()
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(committed(own)))


def test_a_server_that_is_away_is_named_and_the_page_goes_on_when_it_is_back(look, own):
    seen = look(own).go(PAGE)
    seen.expect_fault("ERR_INTERNET_DISCONNECTED")
    seen.page.context.set_offline(True)
    status = seen.page.locator("#refreshing")
    expect(status).to_contain_text("what is shown is old")
    world.work_some(own.context, world.GOES_ON, 1)
    seen.page.context.set_offline(False)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(committed(own)))
    expect(status).not_to_contain_text("old")


def test_a_rollout_that_is_over_is_asked_for_no_more(window, own):
    seen = window(own).go(PAGE)
    rollouts.rollback(own.context, world.GOES_ON, "over")
    expect(seen.page.locator("#state .pill").first).to_have_text("rolled back")
    expect(seen.page.locator("#refreshing button")).to_be_hidden()
    asked = []
    seen.page.on("request", lambda request: asked.append(request.url))
    seen.page.clock.install()
    seen.page.clock.fast_forward(60_000)
    seen.script("() => new Promise(done => requestIdleCallback(done))")
    assert asked == []


def test_without_scripts_the_page_is_the_same_and_reloads_itself(window, own):
    seen = window(own, java_script_enabled=False).go(PAGE)
    before = committed(own)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(before))
    expect(seen.page.locator("#theme")).to_be_hidden()
    world.work_some(own.context, world.GOES_ON, 1)
    expect(seen.page.locator(COMMITTED)).to_have_attribute("data-value", str(committed(own)), timeout=15_000)
