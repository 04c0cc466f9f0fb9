"""A rollout's verbs: asked for, confirmed, done, and told in the ledger, on the page and in the audit log."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import rollouts
from tests.browser import world
from tests.browser.keys import tab_to

GOES_ON, HALTED = world.GOES_ON, world.HALTED


def state(own, rollout_id):
    return rollouts.reread(own.context, rollout_id).state


def audit(own, **filters):
    with own.context.engine.connect() as connection:
        return read_view(connection, "audit", limit=10_000, **filters)


def paused_rows(own, rollout_id=GOES_ON):
    return audit(own, action="rollout.paused", target=str(rollout_id))


def test_by_keyboard_alone_a_rollout_is_paused_and_everybody_knows(look, own):
    seen = look(own).go(f"/rollouts/{GOES_ON}")
    page = seen.page
    tab_to(page, "#act-pause")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/rollouts/{GOES_ON}/pause")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Pause rollout {GOES_ON}?")
    assert state(own, GOES_ON) == "backfilling", "asking changes nothing"
    tab_to(page, "#reason")
    page.keyboard.type("too many complaints")
    tab_to(page, "form[action$='/pause'] button")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/rollouts/{GOES_ON}?done=pause")
    assert state(own, GOES_ON) == "paused"
    (row,) = paused_rows(own)
    assert row["actor"] == f"{own.context.actor} via dashboard"
    assert row["after"]["reason"] == "too many complaints"
    expect(page.locator("#state .pill").first).to_have_text("paused")
    expect(page.locator("#state [data-metric=reason]")).to_have_text(re.compile("too many complaints"))
    expect(page.locator("p.said")).to_contain_text("paused")
    seen.go(f"/audit?action=rollout.paused&target={GOES_ON}")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("too many complaints")
    expect(page.locator("tbody tr")).to_contain_text("via dashboard")


def test_a_paused_rollout_is_resumed(look, own):
    rollouts.pause(own.context, GOES_ON)
    seen = look(own).go(f"/rollouts/{GOES_ON}")
    seen.page.locator("#act-resume").click()
    assert state(own, GOES_ON) == "paused"
    seen.page.get_by_role("button", name="Resume").click()
    seen.page.wait_for_url(f"**/rollouts/{GOES_ON}?done=resume")
    assert state(own, GOES_ON) == "backfilling"
    expect(seen.page.locator("#state .pill").first).to_have_text("backfilling")
    assert len(audit(own, action="rollout.backfilling", target=str(GOES_ON))) == 2


def test_a_rollback_says_what_it_takes_back_and_the_old_model_serves_again(look, own):
    seen = look(own).go(f"/rollouts/{HALTED}")
    row = rollouts.reread(own.context, HALTED)
    seen.page.locator("#act-rollback").click()
    card = seen.page.locator(".confirm")
    for words in ("pics", "old", "far", f"{row.committed_items:,}", f"{row.n_items:,}"):
        expect(card).to_contain_text(words)
    seen.page.get_by_label("Reason").fill("93 % of the answers are wrong")
    seen.page.get_by_role("button", name="Roll back").click()
    seen.page.wait_for_url(f"**/rollouts/{HALTED}?done=rollback")
    assert state(own, HALTED) == "rolled_back"
    expect(seen.page.locator("#state .pill").first).to_have_text("rolled back")
    seen.go("/serving?gallery=pics")
    expect(seen.page.locator("tbody tr").first).to_contain_text("old")
    expect(seen.page.locator("tbody tr").first).to_contain_text("serves now")
    seen.go("/")
    expect(seen.page.locator("[data-gallery=pics] header")).to_contain_text("served by old")


@pytest.mark.parametrize("verb", ["pause", "cancel", "rollback"])
def test_one_who_leaves_it_as_it_is_changes_nothing(look, own, verb):
    seen, before = look(own).go(f"/rollouts/{GOES_ON}"), audit(own)
    seen.page.locator(f"#act-{verb}").click()
    seen.page.get_by_label("Reason").fill("never mind")
    seen.page.get_by_role("link", name="Leave it as it is").click()
    seen.page.wait_for_url(f"**/rollouts/{GOES_ON}")
    expect(seen.page.locator("#state .pill").first).to_have_text("backfilling")
    assert state(own, GOES_ON) == "backfilling"
    assert audit(own) == before


def test_a_confirmation_that_came_too_late_is_refused_and_says_why(look, own):
    seen = look(own).go(f"/rollouts/{GOES_ON}/pause")
    seen.expect_fault("409")
    rollouts.rollback(own.context, GOES_ON, "somebody was faster")
    seen.page.get_by_role("button", name="Pause").click()
    expect(seen.page.get_by_role("alert")).to_contain_text("pause is not possible")
    assert state(own, GOES_ON) == "rolled_back"
    assert paused_rows(own) == []
    seen.page.get_by_role("link", name="Back to the rollout").click()
    expect(seen.page.locator("#state")).to_contain_text("somebody was faster")


def test_a_form_that_is_sent_twice_acts_once(look, own):
    seen = look(own).go(f"/rollouts/{GOES_ON}/pause")
    seen.expect_fault("409")
    seen.page.get_by_role("button", name="Pause").dblclick()
    expect(seen.page.get_by_role("heading", level=1)).to_contain_text(re.compile("Rollout|Not possible"))
    assert len(paused_rows(own)) == 1


def test_only_verbs_that_are_possible_are_offered(look, own):
    seen = look(own).go(f"/rollouts/{world.TAKEN_BACK}")
    expect(seen.page.locator("[id^=act-]")).to_have_count(0)
    seen.go(f"/rollouts/{GOES_ON}/resume")
    expect(seen.page.locator("main")).to_contain_text("not possible while the rollout is backfilling")
    expect(seen.page.locator(".confirm button")).to_have_count(0)


def test_without_scripts_everything_can_be_done(window, own):
    seen = window(own, java_script_enabled=False).go(f"/rollouts/{GOES_ON}")
    seen.page.locator("#act-pause").click()
    seen.page.get_by_role("button", name="Pause").click()
    seen.page.wait_for_url(f"**/rollouts/{GOES_ON}?done=pause")
    assert state(own, GOES_ON) == "paused"


def test_a_page_of_a_stranger_changes_nothing(look, own, tmp_path):
    """The browser says where a form comes from, and sends our cookie not at all."""
    stranger = tmp_path / "stranger.html"
    stranger.write_text(
        f'<form method="post" action="{own.url}/rollouts/{GOES_ON}/pause">'
        '<input name="form_token" value="x"><button>win</button></form>'
    )
    seen = look(own).go("/")
    seen.expect_fault("stranger.html|403|favicon|404")
    seen.page.goto(stranger.as_uri())
    seen.page.get_by_role("button", name="win").click()
    expect(seen.page.locator("body")).to_contain_text("nothing was changed")
    assert state(own, GOES_ON) == "backfilling"
