"""What the guard lets through, with nothing behind it but a page that says OK."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from orchestrator.dashboard.guard import MAX_FORM_BYTES, Guard
from orchestrator.dashboard.sessions import Sessions
from orchestrator.dashboard.sign_in import path_of

HERE = "http://127.0.0.1:8081"


def client_of(token=None, sessions=None, base_url=HERE):
    async def page(request):
        return HTMLResponse("OK")

    app = Starlette(routes=[Route("/{path:path}", page, methods=["GET", "POST", "PUT", "HEAD"])])
    app.add_middleware(Guard, token=token, sessions=sessions or Sessions())
    return TestClient(app, base_url=base_url, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "localhost:8081", "[::1]:8081", "127.0.0.1"])
def test_without_a_token_this_machine_is_answered_by_its_own_names(host):
    assert client_of().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "", "10.0.0.1"]
)
def test_without_a_token_no_other_name_is_answered(host):
    """A stranger's page may let its own name point to this machine."""
    assert client_of().get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": HERE}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_form_comes_from_a_page_of_this_host_and_port(headers, status):
    assert client_of().post("/", headers=headers).status_code == status


def test_other_methods_and_long_forms_are_refused():
    client = client_of()
    assert client.put("/").status_code == 405
    long = client.post("/", headers={"Origin": HERE}, content=b"x" * (MAX_FORM_BYTES + 1))
    assert long.status_code == 413
    assert client.post("/", headers={"Origin": HERE, "Content-Length": "x"}).status_code == 413


def test_with_a_token_pages_lead_to_the_sign_in_and_the_rest_is_refused():
    client = client_of("a-token-of-the-tests")
    answer = client.get("/rollouts/7?kind=negative&k=1")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=%2Frollouts%2F7%3Fkind%3Dnegative%26k%3D1"
    assert client.get("/pictures/item?gallery=a&key=b").status_code == 401
    assert client.get("/", headers={"x-hotrefresh-refresh": "1"}).status_code == 401
    assert client.post("/rollouts/7/pause", headers={"Origin": HERE}).status_code == 401
    for path in ("/sign-in", "/static/dashboard.css", "/livez"):
        assert client.get(path).status_code == 200
    for path in ("/sign-inside", "/static", "/livez/x"):
        assert client.get(path).status_code == 303


def test_only_a_seat_that_signed_in_is_let_through():
    sessions = Sessions()
    client = client_of("a-token-of-the-tests", sessions)
    for seat in (sessions.new_seat(), "a-token-of-the-tests", "x" * 5000):
        client.cookies.set("hotrefresh_8081", seat)
        assert client.get("/").status_code == 303
    client.cookies.set("hotrefresh_8081", sessions.sign_in())
    assert client.get("/").status_code == 200


def test_a_page_gives_a_cookie_once_that_no_script_reads_and_no_other_site_sends():
    client = client_of()
    given = client.get("/").headers["set-cookie"]
    assert given.startswith("hotrefresh_8081=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(given.split("; "))
    assert "Secure" not in given
    assert "set-cookie" not in client.get("/").headers
    assert (
        "; Secure"
        in client_of("a" * 16, base_url="https://board.example").get("/sign-in").headers["set-cookie"]
    )


def test_every_answer_forbids_frames_and_foreign_scripts():
    client = client_of("a-token-of-the-tests")
    for answer in (
        client.get("/"),
        client.get("/sign-in"),
        client.post("/"),
        client.get("/static/dashboard.js"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self';" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/sign-in").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("/rollouts/7?k=1", "/rollouts/7?k=1"),
        (None, "/"),
        ("", "/"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("rollouts", "/"),
        ("/a\r\nSet-Cookie: b", "/"),
        ("/\tx", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_after_signing_in_one_stays_here(asked, path):
    assert path_of(asked) == path
