"""The HTTP interface under a real server: searches through a whole refresh, who may ask, what is refused, health, metrics."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.main import main
from orchestrator.api.guard import check_binding, token_of
from orchestrator.api.server import open_socket
from orchestrator.errors import UsageError
from orchestrator.service import advance, background
from orchestrator.service.finish import finalize
from tests.engine import platform
from tests.engine.api_server import TOKEN, client_of, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def client(world) -> Iterator[httpx.Client]:
    """A client of a server in this process, with the token."""
    with client_of(world) as opened:
        yield opened


def search(client, **asked):
    return client.post("/search/pics", json={"key": "class-04/0.png", "k": 3, **asked})


def test_searches_are_answered_before_during_and_after_a_refresh(world, client):
    before = search(client).json()
    assert (before["model"], before["hits"][0]["key"]) == ("old", "class-04/0.png")
    row = advance.advance(world, platform.start(world).id)
    until(lambda: search(client).json()["model"] == "kin")
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(search(client).status_code)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for each in askers:
        each.start()
    platform.work(world, row.id)
    finalize(world, row.id)
    stop.set()
    for each in askers:
        each.join()
    assert set(answers) == {200}
    until(lambda: search(client).json()["coverage_ratio"] == 1.0)
    after = search(client).json()
    assert {hit["rollout_id"] for hit in after["hits"]} == {row.id}
    assert {hit["model"] for hit in after["hits"]} == {"kin"}
    assert (before["rollout"] != row.id, after["rollout"]) == (True, row.id)
    assert after["log_sequence"] > before["log_sequence"]


def test_a_picture_and_a_text_are_taken_for_what_they_are(world, client, tmp_path):
    picture = base64.b64encode((tmp_path / "pictures" / "class-04" / "0.png").read_bytes()).decode()
    found = client.post("/search/pics", json={"image": picture, "k": 1}).json()
    assert found["hits"][0]["key"] == "class-04/0.png"
    assert client.post("/search/pics", json={"text": "a bicycle"}).status_code == 409


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ([], 400),
        ({}, 400),
        ({"key": 7}, 400),
        ({"key": "a", "text": "b"}, 400),
        ({"key": "class-04/0.png", "k": 0}, 400),
        ({"key": "class-04/0.png", "k": 10**9}, 400),
        ({"key": "class-04/0.png", "limit": 3}, 400),
        ({"key": "class-04/0.png", "k": True}, 400),
        ({"key": "nowhere.png"}, 404),
        ({"key": "nul\0"}, 400),
        ({"key": " "}, 400),
        ({"image": "!!"}, 400),
        ({"image": "ä"}, 400),
        ({"image": base64.b64encode(b"no picture").decode()}, 400),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(client, asked, status):
    answer = client.post("/search/pics", json=asked)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}
    assert "Traceback" not in answer.text


def test_other_mistakes_have_their_status(client):
    assert client.post("/search/nope", json={"key": "a"}).status_code == 404
    assert client.get("/search/pics").status_code == 405
    assert client.post("/rollouts", json={}).status_code == 405
    assert client.get("/rollouts/99").status_code == 404
    assert client.get("/nothing").status_code == 404
    assert client.get("/rollouts/99999999999999999999").status_code == 404
    assert client.post("/search/%00", json={"key": "a"}).status_code == 404
    for body in (b"{", b"[" * 50_000, b'{"key": "\\ud800"}', b"\xff\xfe", b""):
        assert client.post("/search/pics", content=body).status_code == 400


def test_without_the_token_only_health_answers(client):
    stranger = httpx.Client(base_url=client.base_url)
    assert stranger.get("/livez").status_code == 200
    assert stranger.get("/readyz").status_code == 200
    for path in ("/metrics", "/galleries", "/rollouts", "/rollouts/1"):
        assert stranger.get(path).status_code == 401
        assert stranger.get(path, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
        assert client.get(path).status_code == 200
    assert stranger.post("/search/pics", json={"key": "class-04/0.png"}).status_code == 401
    stranger.close()


def test_a_body_that_is_too_long_is_refused_announced_or_not(client, monkeypatch):
    monkeypatch.setattr("orchestrator.api.guard.MAX_BODY_BYTES", 1000)
    assert client.post("/search/pics", content=b"x" * 2000).status_code == 413

    def pieces():
        for _ in range(20):
            yield b"x" * 100

    assert client.post("/search/pics", content=pieces()).status_code == 413


def test_readiness_names_its_reasons_to_those_who_may_know(world, client):
    assert client.get("/readyz").json() == {"status": "ready", "reasons": []}
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "schema: 0001" in answer.json()["reasons"][0]
    assert httpx.get(f"{client.base_url}/readyz").json() == {"status": "not_ready"}


def test_it_will_not_listen_to_the_world_without_a_token(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "HOTREFRESH_API_TOKEN" in capsys.readouterr().err
    check_binding("127.0.0.1", None)
    check_binding("0.0.0.0", TOKEN)
    with pytest.raises(UsageError):
        check_binding("example.org", None)


def test_a_token_file_that_others_may_read_is_refused(settings, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o644)
    named = settings.model_copy(update={"api_token_file": file})
    with pytest.raises(UsageError, match="chmod 600"):
        token_of(named)
    file.chmod(0o600)
    assert token_of(named) == TOKEN
    file.write_text("short")
    with pytest.raises(UsageError, match="at least 16"):
        token_of(named)
    with pytest.raises(UsageError, match="cannot be read"):
        token_of(settings.model_copy(update={"api_token_file": tmp_path}))
    assert token_of(settings.model_copy(update={"api_token": ""})) is None


def test_without_a_token_only_this_machine_is_answered_and_no_page_in_its_browser(world):
    with client_of(world, None) as client:
        assert search(client).status_code == 200
        assert client.get("/rollouts").status_code == 200
        assert client.get("/rollouts", headers={"Host": "attacker.example:80"}).status_code == 403
        assert client.get("/rollouts", headers={"Host": "[broken"}).status_code == 403
        stranger = {"Origin": "https://attacker.example"}
        assert (
            client.post("/search/pics", json={"key": "class-04/0.png"}, headers=stranger).status_code == 403
        )


def test_a_taken_port_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err


def test_sigterm_lets_the_request_at_hand_finish_and_the_log_is_json_without_secrets(world, tmp_path):
    environment = background.worker_environment(world.settings) | {"HOTREFRESH_API_TOKEN": TOKEN}
    command = [os.sys.executable, "-m", "cli.main", "serve", "--port", "0", "-o", "json"]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        server = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
    try:
        port = httpx.URL(json.loads(server.stdout.readline())["url"]).port
        until(lambda: answers(f"http://127.0.0.1:{port}/livez"))
        body = json.dumps({"key": "class-04/0.png", "k": 1}).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            head = f"POST /search/pics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
            time.sleep(0.5)  # it is being read
            server.send_signal(signal.SIGTERM)
            until(lambda: not answers(f"http://127.0.0.1:{port}/livez"))
            line.sendall(body[5:])
            assert line.recv(100).startswith(b"HTTP/1.1 200")
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()
    written = log.read_text()
    assert TOKEN not in written
    events = [json.loads(line)["event"] for line in written.splitlines() if line.startswith("{")]
    assert {"server.started", "replica.loaded", "request.answered", "server.stopped"} <= set(events)
    assert events[-1] == "server.stopped"


def answers(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_an_answer_does_not_wait_until_its_first_packet_is_acknowledged():
    with open_socket("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
