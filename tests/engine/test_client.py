"""The Python client before a real server and before one that misbehaves, and `gallery search` by both ways."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from orchestrator.client import Answer, Client, RefusedError, UnreachableError
from orchestrator.core.traffic import bucket, in_share
from orchestrator.errors import ExitCode, UsageError
from tests.engine import platform
from tests.engine.api_server import TOKEN, client_of
from tests.engine.test_api_searches import encoder_of, vector_of

KEY = "class-04/0.png"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def url(world):
    with client_of(world) as opened:
        yield str(opened.base_url)


def test_it_needs_nothing_of_the_engine():
    code = (
        "import sys, orchestrator.client; "
        "print([m for m in ('torch', 'faiss', 'sqlalchemy', 'numpy', 'fastapi', 'pydantic', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_way_to_ask_finds_the_same(world, url, tmp_path):
    file = tmp_path / "pictures" / KEY
    vector = vector_of(world, "old", file)
    with Client(url, TOKEN) as client:
        asked = ({"key": KEY}, {"image": file}, {"image": str(file)}, {"image": file.read_bytes()},
                 {"vector": vector}, {"vector": vector.tolist(), "model": "old"})  # fmt: skip
        found = [
            client.search("pics", k=3, where={"label": ("class-04", "class-05")}, **each) for each in asked
        ]
        batch = client.search_batch("pics", asked, k=3, where={"label": ["class-04", "class-05"]})
        for answer in (*found, *batch):
            assert isinstance(answer, Answer)
            assert (answer.gallery, answer.model, answer.hits[0].key, answer.hits[0].model) == (
                "pics",
                "old",
                KEY,
                "old",
            )
            assert [hit.key for hit in answer.hits] == [hit.key for hit in found[0].hits]
        [gallery], [rollout] = client.galleries(), client.rollouts()
        assert (gallery.name, gallery.model, gallery.n_items) == ("pics", "old", 240)
        assert (rollout.state, rollout.columns["committed"]) == ("finalized", 240)
        assert {band["depth"] for band in client.rollout(rollout.id).columns["queue"]} == {0}


def test_a_sticky_id_keeps_its_system_and_answers_say_which_one_it_was(world, monkeypatch, capsys):
    row = platform.start(world, canary=50)
    with client_of(world) as opened:
        url, ids = str(opened.base_url), [*map(str, range(12)), "jürgen"]
        # As the bytes of the header are read.
        places = [bucket(each.encode().decode("latin-1"), row.id) for each in ids]
        expected = [("new", "kin") if in_share(each, 50) else ("old", "old") for each in places]
        assert len(set(expected)) == 2
        with Client(url, TOKEN) as client:
            for by in ({"key": KEY}, {"image": world.settings.data_dir.parent / "pictures" / KEY}):
                found = [client.search("pics", k=2, sticky=each, **by) for each in ids]
                assert [(each.system, each.model) for each in found] == expected
            for each, (system, model) in zip(ids, expected, strict=True):
                batch = client.search_batch("pics", [{"key": KEY}, {"key": KEY}], k=2, sticky=each)
                assert [(answer.system, answer.model) for answer in batch] == [(system, model)] * 2
            assert {client.search("pics", key=KEY).system for _ in range(40)} == {"old", "new"}
            for wrong in ("", "x" * 201, "ü" * 101, "a\nb", " a", "\ud800"):
                with pytest.raises(UsageError, match="sticky"):
                    client.search("pics", key=KEY, sticky=wrong)
        monkeypatch.setenv("HOTREFRESH_API_TOKEN", TOKEN)
        for each, (system, model) in list(zip(ids, expected, strict=True))[-5:]:
            asked = ["gallery", "search", "pics", "--key", KEY, "--server", url, "--sticky", each]
            assert main([*asked, "-o", "json"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert (told["system"], told["model"], told["guarded"]) == (system, model, False)
            assert main(asked) == 0
            assert f"answered by {model}, the {system} system of a canary" in capsys.readouterr().err
        assert main([*asked[:-1], "a\nb"]) == ExitCode.USAGE
    assert main(["gallery", "search", "pics", "--key", KEY, "--sticky", "7"]) == ExitCode.USAGE
    assert "--sticky goes with --server" in capsys.readouterr().err


def test_an_answer_that_the_model_before_helped_with_says_so(capsys):
    """What a guard does is tested with the guard; here its word comes through, and that of a server without it."""
    hits = b'"hits": [], "model": "kin", "rollout": 2, "log_sequence": 3, "coverage_ratio": 0.5'
    more = b', "guarded": true, "system": "new", "of_a_newer_server": 7'
    for added, told in ((more, (True, "new")), (b"", (False, None))):
        with scripted((200, {}, b"{" + hits + added + b"}")) as (url, _), Client(url) as client:
            answer = client.search("pics", key="a")
            assert main(["gallery", "search", "pics", "--key", "a", "--server", url]) == 0
        assert (answer.guarded, answer.system) == told
        assert ("guarded: the model before helped" in capsys.readouterr().err) == told[0]


def test_what_is_refused_has_the_servers_code_and_an_exit_code(url):
    with Client(url, TOKEN, retries=0) as client:
        for asked, status, code, exit_code in (
            ({"key": "nowhere"}, 404, "not_found", ExitCode.NOT_FOUND),
            ({"text": "a cat"}, 409, "conflict", ExitCode.CONFLICT),
            ({"key": KEY, "k": 0}, 400, "usage", ExitCode.USAGE),
            ({"image": b"no picture"}, 400, "unsupported", ExitCode.USAGE),
        ):
            with pytest.raises(RefusedError) as refused:
                client.search("pics", **asked)
            found = refused.value
            assert (found.status, found.code, found.exit_code) == (status, code, exit_code)
        good, bad = client.search_batch("pics", [{"key": KEY}, {"key": "nowhere"}])
        assert isinstance(good, Answer)
        assert (bad.code, "nowhere" in str(bad)) == ("not_found", True)
        for wrong in ({}, {"key": "a", "text": "b"}, {"image": "/nowhere.png"}, {"vector": [float("nan")]},
                      {"key": "a", "model": "old"}):  # fmt: skip
            with pytest.raises(UsageError):
                client.search("pics", **wrong)
    with Client(url, "not-the-token-of-it") as stranger, pytest.raises(RefusedError) as refused:
        stranger.galleries()
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers, one a request, None: it hangs up; and when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(time.monotonic())
            answer = answers[min(len(asked), len(answers)) - 1]
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """No line on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


GOOD = (200, {}, b'{"schema_version": 1, "galleries": []}')
BUSY = (503, {}, b'{"error": {"code": "busy", "message": "try again"}}')


def test_a_server_that_is_away_or_busy_for_a_moment_is_asked_again():
    with (
        scripted(None, BUSY, (502, {}, b"<html>"), GOOD) as (url, asked),
        Client(url, backoff_s=0.01) as client,
    ):
        assert client.galleries() == []
    assert len(asked) == 4


def test_it_waits_as_long_as_the_server_says():
    with (
        scripted((429, {"Retry-After": "1"}, BUSY[2]), GOOD) as (url, asked),
        Client(url, backoff_s=0.0) as client,
    ):
        client.galleries()
    assert asked[1] - asked[0] >= 1.0


def test_it_gives_up_with_what_the_server_said_and_asks_no_more_than_it_was_told():
    with scripted(BUSY) as (url, asked), Client(url, retries=2, backoff_s=0.0) as client:
        with pytest.raises(RefusedError, match="try again") as refused:
            client.galleries()
        assert (refused.value.code, refused.value.exit_code, len(asked)) == ("busy", ExitCode.UNREACHABLE, 3)
    with (
        pytest.raises(UnreachableError, match="cannot be reached"),
        Client(url, retries=1, backoff_s=0.0) as client,
    ):
        client.galleries()


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"galleries": [{}]}', b'{"galleries": 7}', b"\xff"]
)
def test_what_is_no_answer_of_ours_is_said_to_be_none(body):
    with scripted((200, {}, body)) as (url, _), Client(url) as client, pytest.raises(RefusedError) as refused:
        client.galleries()
    assert refused.value.code == "strange_answer"


def test_a_url_or_a_token_that_cannot_be_one_is_refused_before_anything_is_sent():
    for url, token in (("localhost:8080", None), ("http://[", None), ("http://127.0.0.1:1", "a\nb")):
        with pytest.raises((UsageError, UnreachableError)):
            Client(url, token, retries=0).galleries()


def test_gallery_search_says_the_same_by_a_server_and_without_one(world, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTREFRESH_DATABASE_URL", world.settings.database_url)
    monkeypatch.setenv("HOTREFRESH_BROKER_URL", world.settings.broker_url)
    monkeypatch.setenv("HOTREFRESH_DATA_DIR", str(world.settings.data_dir))
    np.save("query.npy", encoder_of(world, "old").encode(
        [encoder_of(world, "old").preprocess(platform_picture(tmp_path))])[0])  # fmt: skip

    def said(*arguments):
        code = main(["gallery", "search", "pics", *arguments])
        return code, capsys.readouterr()

    for asked in (
        ("--key", KEY, "-k", "4"),
        (
            "--image",
            str(tmp_path / "pictures" / KEY),
            "--where",
            "label=class-04",
            "--where",
            "label=class-05",
        ),
        ("--vector", "query.npy"),
    ):
        here = said(*asked, "-o", "json")
        monkeypatch.setenv("HOTREFRESH_API_TOKEN", TOKEN)
        there = said(*asked, "-o", "json", "--server", url)
        monkeypatch.setenv("HOTREFRESH_SERVER_URL", url)
        by_setting = said(*asked, "-o", "json")
        table = said(*asked)
        monkeypatch.delenv("HOTREFRESH_SERVER_URL")
        assert [each[0] for each in (here, there, by_setting, table)] == [0, 0, 0, 0]
        documents = [json.loads(each[1].out) for each in (here, there, by_setting)]
        for document in documents:
            for hit in document["hits"]:
                hit["score"] = round(hit["score"], 4)
        assert documents[0] == documents[1] == documents[2]
        assert documents[0]["hits"][0]["key"] == KEY
        assert "answered by old" in table[1].err
    for wrong, code in (
        (("--key", "nowhere", "--server", url), ExitCode.NOT_FOUND),
        (("--key", KEY, "--server", "http://127.0.0.1:9"), ExitCode.UNREACHABLE),
        (("--key", KEY, "--where", "label"), ExitCode.USAGE),
        (("--key", KEY, "--where", "colour=red"), ExitCode.USAGE),
        (("--vector", "none.npy"), ExitCode.USAGE),
    ):
        assert said(*wrong)[0] == code


def platform_picture(tmp_path):
    from models.datasets import read_item
    from models.datasets.folder import uri_of

    return read_item(uri_of(tmp_path / "pictures" / KEY))
