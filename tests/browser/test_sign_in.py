"""A dashboard with a token: signing in, signing out, and what a stranger sees."""

from __future__ import annotations

from urllib.parse import quote

from playwright.sync_api import expect

from tests.browser import world
from tests.browser.addresses import PAGES
from tests.engine.dashboard_server import TOKEN

ASKED = PAGES["flips"]


def sign_in(seen, token=TOKEN):
    seen.page.get_by_label("Token").fill(token)
    seen.page.get_by_role("button", name="Sign in").click()


def test_who_signs_in_comes_to_the_page_that_was_asked_for(look, locked):
    seen = look(locked).go(ASKED)
    assert "/sign-in?next=" in seen.page.url
    expect(seen.page.get_by_label("Token")).to_be_focused()
    expect(seen.page.get_by_role("navigation", name="Pages")).to_have_count(0)
    seen.page.keyboard.type(TOKEN)
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_url(f"{locked.url}{ASKED}")
    expect(seen.page.get_by_role("heading", level=1)).to_contain_text("Flips")
    (cookie,) = seen.page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert (
        TOKEN
        not in f"{cookie}{seen.script('() => JSON.stringify(localStorage) + document.cookie + location')}"
    )


def test_a_wrong_token_is_said_where_it_was_typed(look, locked):
    seen = look(locked).go("/")
    seen.expect_fault("401")
    sign_in(seen, "wrong")
    expect(seen.page.get_by_role("alert")).to_contain_text("not the token")
    field = seen.page.get_by_label("Token")
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    assert field.get_attribute("aria-invalid") == "true"
    sign_in(seen)
    seen.page.wait_for_url(f"{locked.url}/")
    expect(seen.page.get_by_role("heading", name="pics")).to_be_visible()


def test_who_signed_out_sees_nothing_more(look, locked):
    seen = look(locked).go("/")
    sign_in(seen)
    seen.page.wait_for_url(f"{locked.url}/")
    seen.page.get_by_role("button", name="Sign out").click()
    seen.page.wait_for_url("**/sign-in")
    seen.page.go_back()
    expect(seen.page.get_by_label("Token")).to_be_visible()
    seen.go(ASKED)
    assert "/sign-in" in seen.page.url
    assert locked.context.actor not in seen.page.content()


def test_an_open_page_asks_for_the_token_when_another_tab_signed_out(window, locked):
    seen = window(locked).go(f"/rollouts/{world.GOES_ON}")
    seen.expect_fault("401")
    sign_in(seen)
    seen.page.wait_for_url(f"**/rollouts/{world.GOES_ON}")
    other = seen.page.context.new_page()
    other.goto(f"{locked.url}/")
    other.get_by_role("button", name="Sign out").click()
    other.wait_for_url("**/sign-in")
    seen.page.bring_to_front()
    seen.page.wait_for_url("**/sign-in?next=**")


def test_a_stranger_gets_no_picture(look, locked):
    seen = look(locked)
    for path in (
        "/pictures/item?gallery=pics&key=class-00%2F0.png",
        "/pictures/query?gallery=pics&queryset=asked&key=q0",
    ):
        answer = seen.page.context.request.get(locked.url + path)
        assert answer.status == 401
        assert "image" not in answer.headers["content-type"]


def test_after_signing_in_nobody_is_led_to_another_host(look, locked):
    seen = look(locked)
    for bad in (
        "//elsewhere.test/",
        "https://elsewhere.test/",
        "/\\elsewhere.test",
        "javascript:window.taken=1",
    ):
        seen.page.context.clear_cookies()
        seen.go(f"/sign-in?next={quote(bad, safe='')}")
        sign_in(seen)
        seen.page.wait_for_url(f"{locked.url}/")
        assert seen.script("() => window.taken") is None
