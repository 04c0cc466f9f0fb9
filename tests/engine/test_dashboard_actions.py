"""What the dashboard changes, who may, and what it says when the ledger is away."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from cli.main import main
from orchestrator.bootstrap import open_context
from orchestrator.dashboard import site
from orchestrator.errors import UsageError
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, rollouts
from orchestrator.service.wait import read_status
from tests.engine import platform
from tests.engine.dashboard_server import TOKEN, browser_of, figures, form_token, send
from tests.faults.proxy import HalfOpen, Pass, Proxy, Refuse

ROOT = Path(__file__).parents[2]
EVIL = "http://evil.example"


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def running(world):
    return advance.advance(world, platform.start(world).id)


@pytest.fixture
def client(running, world):
    with browser_of(world) as opened:
        yield opened


def state(context, row):
    return rollouts.reread(context, row.id).state


def audit_of(context, row):
    with context.engine.connect() as connection:
        return read_view(connection, "audit", target=str(row.id))


def test_a_verb_is_confirmed_done_and_audited_and_the_page_tells_of_it(world, running, client):
    path = f"/rollouts/{running.id}"
    confirm = client.get(f"{path}/pause")
    assert "Workers stop claiming and committing at once" in confirm.text
    assert [value for value, _ in figures(confirm, "total")] == ["240"]
    assert state(world, running) == "backfilling"
    done = send(client, f"{path}/pause", reason="the GPUs are needed")
    assert (done.status_code, done.headers["location"]) == (303, f"{path}?done=pause")
    assert state(world, running) == "paused"
    page = client.get(done.headers["location"]).text
    assert "The rollout is paused" in page
    assert "the GPUs are needed" in page
    said = audit_of(world, running)[-1]
    assert said["action"] == "rollout.paused"
    assert said["actor"] == f"{world.actor} via dashboard"
    assert said["after"]["reason"] == "the GPUs are needed"

    assert send(client, f"{path}/resume").status_code == 303
    assert state(world, running) == "backfilling"
    assert "4 via dashboard" not in page
    assert send(client, f"{path}/rollback").status_code == 303
    assert state(world, running) == "rolled_back"
    assert [row["actor"].endswith(" via dashboard") for row in audit_of(world, running)[-3:]] == [True] * 3
    with world.engine.connect() as connection:
        (now,) = [
            row for row in read_view(connection, "serving_history", gallery="pics") if row["valid_to"] is None
        ]
    assert (now["model"], now["actor"]) == ("old", f"{world.actor} via dashboard")
    assert "Nothing can be done with it any more" in client.get(path).text


def test_a_finished_rollout_is_finalized_and_a_cancel_takes_the_next_one_back(world, running, client):
    assert platform.work(world, running.id).state == "finalizable"
    assert send(client, f"/rollouts/{running.id}/finalize").status_code == 303
    assert state(world, running) == "finalized"
    assert "The upgrade is accepted" in client.get(f"/rollouts/{running.id}?done=finalize").text


def test_a_cancel_says_what_is_lost(world, running, client):
    page = client.get(f"/rollouts/{running.id}/cancel").text
    assert "pics serves old with its old vectors again" in page
    assert send(client, f"/rollouts/{running.id}/cancel").status_code == 303
    assert state(world, running) == "cancelled"


def test_what_the_state_does_not_allow_is_one_clear_message(world, running, client):
    before = len(audit_of(world, running))
    refused = send(client, f"/rollouts/{running.id}/resume", page=f"/rollouts/{running.id}/pause")
    assert refused.status_code == 303, "to resume what goes on is done already"
    refused = send(client, f"/rollouts/{running.id}/finalize", page=f"/rollouts/{running.id}/pause")
    assert refused.status_code == 409
    assert "open_items: 240 of 240 items are not re-embedded yet" in refused.text
    page = client.get(f"/rollouts/{running.id}/finalize").text
    assert "This is not possible while the rollout is backfilling" in page
    for rollout_id in (99, 99_999_999_999_999_999_999):
        missing = send(client, f"/rollouts/{rollout_id}/pause", page=f"/rollouts/{running.id}/pause")
        assert missing.status_code == 404
    first = send(client, "/rollouts/1/rollback", page=f"/rollouts/{running.id}/pause")
    assert first.status_code == 409
    assert "first embedding" in first.text
    assert (state(world, running), len(audit_of(world, running))) == ("backfilling", before)
    assert "/rollouts/1/rollback" not in client.get("/rollouts/1").text


def test_a_form_from_elsewhere_or_without_its_token_changes_nothing(world, running, client):
    path, before = f"/rollouts/{running.id}/rollback", len(audit_of(world, running))
    token, own = form_token(client.get(path)), {"Origin": str(client.base_url).rstrip("/")}
    stranger = httpx.Client(base_url=client.base_url)
    theirs = form_token(stranger.get(path))
    tries = [
        client.post(path, data={"form_token": token}),
        client.post(path, data={"form_token": token}, headers={"Origin": EVIL}),
        client.post(path, data={"form_token": token}, headers={"Origin": "null"}),
        client.post(path, data={}, headers=own),
        client.post(path, data={"form_token": theirs}, headers=own),
        client.post(path, data={"form_token": token[:-1] + "x"}, headers=own),
        stranger.post(path, data={"form_token": token}, headers=own),
        client.post(path, data={"form_token": token}, headers={**own, "Host": "evil.example"}),
        client.post(path, json={"form_token": token}, headers=own),
        client.post(path, content=b"\xff" * 100, headers=own),
    ]
    assert {answer.status_code for answer in tries} <= {400, 403}
    assert client.request("PUT", path, headers=own).status_code == 405
    assert client.get(f"{path}?form_token={token}").status_code == 200
    assert (state(world, running), len(audit_of(world, running))) == ("backfilling", before)
    stranger.close()


def test_a_long_form_and_a_reason_that_is_no_line_are_refused(world, running, client):
    path = f"/rollouts/{running.id}/pause"
    own = {"Origin": str(client.base_url).rstrip("/")}

    def pieces():
        for _ in range(40):
            yield b"x" * 1000

    assert client.post(path, content=pieces(), headers=own).status_code == 413
    assert send(client, path, reason="x" * 501).status_code == 400
    assert send(client, path, reason="two\nlines").status_code == 400
    assert send(client, path, reason="turned \u202e round").status_code == 400
    assert state(world, running) == "backfilling"


def test_with_a_token_everything_waits_for_the_sign_in(world, running):
    with browser_of(world, TOKEN) as client:
        for path in ("/", f"/rollouts/{running.id}", "/audit", f"/rollouts/{running.id}/rollback"):
            answer = client.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/sign-in?next=")
        assert client.get("/pictures/item?gallery=pics&key=class-03/0.png").status_code == 401
        assert client.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 303
        assert client.get("/livez").status_code == 200
        assert "pics" not in client.get("/sign-in").text

        wrong = send(client, "/sign-in", token=TOKEN + "x", next="/audit")
        assert wrong.status_code == 401
        assert "That is not the token." in wrong.text
        assert client.get("/").status_code == 303
        before = set(client.cookies.values())

        right = send(client, "/sign-in", token=TOKEN, next="/audit")
        assert (right.status_code, right.headers["location"]) == (303, "/audit")
        given = right.headers["set-cookie"]
        assert TOKEN not in given
        assert {"HttpOnly", "SameSite=Strict"} <= set(given.split("; "))
        assert not before & set(client.cookies.values()), "a cookie from before is not promoted"
        assert client.get("/audit").status_code == 200
        assert send(client, f"/rollouts/{running.id}/pause").status_code == 303
        assert state(world, running) == "paused"

        kept = dict(client.cookies)
        assert send(client, "/sign-out", page="/").headers["location"] == "/sign-in"
        assert client.get("/").status_code == 303
        with httpx.Client(base_url=client.base_url, cookies=kept) as thief:
            assert thief.get("/").status_code == 303, "the session has ended, not only its cookie"


def test_the_sign_in_leads_nowhere_else(world, running):
    with browser_of(world, TOKEN) as client:
        for then in ("https://evil.example", "//evil.example", "/\\evil.example"):
            assert send(client, "/sign-in", token=TOKEN, next=then).headers["location"] == "/"
            send(client, "/sign-out", page="/")


# -- the ledger away ---------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(world, running):
    url = make_url(world.settings.database_url)
    with Proxy((url.host, url.port)) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with open_context(world.settings.model_copy(update={"database_url": through})) as opened:
            yield opened, proxy


READ = (
    "/", "/rollouts/2", "/rollouts/2/flips", "/items?gallery=pics", "/serving", "/certificates", "/audit", "/rollouts/2/pause",
)  # fmt: skip


def test_without_the_ledger_every_page_says_so_and_is_back_with_it(proxied):
    context, proxy = proxied
    with browser_of(context) as client:
        assert client.get("/").status_code == 200
        proxy.set(Refuse())
        proxy.reset_all()
        for path in READ:
            answer = client.get(path)
            assert answer.status_code == 503, path
            assert "The ledger is away" in answer.text
            assert "Traceback" not in answer.text
        assert client.get("/livez").status_code == 200
        assert client.get("/static/dashboard.css").status_code == 200
        proxy.set(Pass())
        assert client.get("/").status_code == 200


def test_a_ledger_that_says_nothing_does_not_hang_a_page(proxied, monkeypatch):
    context, proxy = proxied
    monkeypatch.setattr(site, "READ_S", 0.5)
    with browser_of(context) as client:
        assert client.get("/").status_code == 200
        proxy.set(HalfOpen())
        began = time.monotonic()
        for path in READ[:3]:
            answer = client.get(path)
            assert answer.status_code == 503
            assert "did not answer within 0.5 s" in answer.text
        assert time.monotonic() - began < 20, "each would wait for the network's own limit"
        proxy.set(Pass())
        proxy.reset_all()


# -- the command -------------------------------------------------------------------------------------------------------


def test_beyond_this_machine_it_wants_a_token(capsys):
    assert main(["dashboard", "--host", "0.0.0.0"]) == 2
    assert "the dashboard will not listen on 0.0.0.0 without a token" in capsys.readouterr().err


def test_the_command_serves_until_it_is_told_to_stop(world, running, tmp_path):
    import json
    import os
    import signal
    import sys

    environment = {
        **os.environ, "HOTREFRESH_DATABASE_URL": world.settings.database_url, "HOTREFRESH_BROKER_URL": world.settings.broker_url,
        "HOTREFRESH_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.main", "dashboard", "--port", "0", "-o", "json"],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            url = json.loads(process.stdout.readline())["url"]
            page = httpx.get(url)
            assert page.status_code == 200
            assert re.search(r"<h3[^>]*>pics</h3>", page.text)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_status_shows_every_gate_and_not_only_the_last_one_that_judged(world, tmp_path):
    """What the page and the command show of two gates."""
    from orchestrator.service import tuning

    gates = tmp_path / "gates.toml"
    gates.write_text(
        '[[gate]]\nmeasure = "negative_flip_rate"\nlimit = 1.0\nminimum_n = 10\n'
        '[[gate]]\nname = "second"\nmeasure = "recall_loss"\nlimit = 1.0\nminimum_n = 10\n'
    )
    row = platform.start(world)
    tuning.set_values(world, row.id, dict([tuning.parse(f"gates={gates}")]))
    assert platform.work(world, row.id).state == "finalizable"
    assert {each["gate"] for each in read_status(world, row.id).gates} == {"negative_flip_rate", "second"}
    assert finish.finalize(world, row.id).state == "finalized"


def test_the_token_of_the_api_is_asked_for(monkeypatch):
    from orchestrator.api.guard import check_binding

    check_binding("127.0.0.1", None, "the dashboard")
    check_binding("0.0.0.0", TOKEN, "the dashboard")
    with pytest.raises(UsageError, match="the dashboard"):
        check_binding("10.0.0.1", None, "the dashboard")
