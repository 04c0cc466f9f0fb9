"""The HTTP interface under a real server: searches through a whole refresh, who may ask, what is refused, health, metrics."""

from __future__ import annotations

import base64
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
import uvicorn

from cli.main import main
from orchestrator.api.app import make_app
from orchestrator.api.guard import check_binding, token_of
from orchestrator.errors import UsageError
from orchestrator.service import advance, background
from orchestrator.service.finish import finalize
from tests.engine import platform

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


class _Quiet(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The test's process keeps its own."""


@pytest.fixture
def client(world) -> Iterator[httpx.Client]:
    """A client of a server in this process, with the token."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = _Quiet(uvicorn.Config(make_app(world, TOKEN), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as opened:
            yield opened
        server.should_exit = True
        thread.join(30)


def until(done, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


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
        ({"key": "nowhere.png"}, 404),
        ({"image": "!!"}, 400),
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
    assert client.post("/search/pics", content=b"{").status_code == 400


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


def test_readiness_names_its_reasons(world, client):
    assert client.get("/readyz").json() == {"ready": True, "reasons": []}
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "schema: 0001" in answer.json()["reasons"][0]


def test_metrics_have_the_names_of_the_contract(world, client):
    row = platform.work(world, platform.start(world).id)
    search(client)
    text = client.get("/metrics").text
    for name in (
        "hotrefresh_items{", "hotrefresh_items_processed_total{", "hotrefresh_coverage_ratio{", "hotrefresh_queue_depth{",
        "hotrefresh_queue_oldest_age_seconds ", "hotrefresh_flips{", "hotrefresh_negative_flip_ratio{",
        "hotrefresh_rollout_info{", "hotrefresh_rollout_active_seconds{", "hotrefresh_rollout_paused_seconds{",
        "hotrefresh_workers ", "hotrefresh_search_duration_seconds_bucket{", "hotrefresh_replica_lag_batches{",
        "hotrefresh_build_info{",
    ):  # fmt: skip
        assert f"\n{name}" in text, name
    assert f'hotrefresh_items{{rollout="{row.id}",state="committed"}} 240.0' in text
    assert "class-04/0.png" not in text


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


def test_the_command_serves_and_ends_with_sigterm(world, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = background.worker_environment(world.settings) | {"HOTREFRESH_API_TOKEN": TOKEN}
    command = [str(Path(os.sys.executable).with_name("hotrefresh")), "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/livez"

    def answers():
        try:
            return httpx.get(url).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers)
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert TOKEN not in server.stderr.read()
