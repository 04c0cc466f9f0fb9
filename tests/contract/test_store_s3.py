"""Object storage that is away, slow, refuses or is full: each shows soon, named, with what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from orchestrator.errors import StoreFullError, UnreachableError, UsageError
from orchestrator.store import (
    list_folders,
    new_folder,
    open_extents,
    open_table,
    probe,
    read_array,
    remove_folder,
    write_array,
)
from tests.contract.stores import BUCKET, place_of, point_at, s3_server

DIM = 8
ROOT = f"s3://{BUCKET}/root"
FOLDER = f"{ROOT}/gallery-1/{'0' * 16}"
VERBS = {
    "write": lambda: open_extents(FOLDER, DIM).write(0, 1, np.zeros((4, DIM), np.float32)),
    "read": lambda: open_extents(FOLDER, DIM).read(0, 4, 1, None),
    "write_array": lambda: write_array(FOLDER, "rows.u32", np.zeros(4, np.uint32)),
    "read_array": lambda: read_array(FOLDER, "rows.u32", "<u4", 4),
    "map": lambda: open_table(FOLDER, "adapted.f32", 4, DIM).map(),
    "new_folder": lambda: new_folder(ROOT, 1),
    "list_folders": lambda: list_folders(ROOT),
    "remove_folder": lambda: remove_folder(ROOT, FOLDER),
    "probe": lambda: probe(ROOT),
}
every_verb = pytest.mark.parametrize("verb", sorted(VERBS))


def refused(verb, kind=UnreachableError, **match):
    """What a verb says when the store fails it; it must say so within 20 s."""
    started = time.monotonic()
    with pytest.raises(kind, **match) as caught:
        VERBS[verb]()
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert "canary-secret" not in message
    assert ROOT in message
    assert "\n" not in message
    return message


@pytest.fixture
def answering(monkeypatch):
    """A server that answers every request with one status and one S3 error code."""
    servers = []

    def start(status, code):
        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = f"<Error><Code>{code}</Code><Message>No, {code}.</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent(monkeypatch):
    """A server that accepts connections and never answers."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        point_at(monkeypatch, f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield
        listening.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_a_server_that_stopped_is_unreachable_for_every_verb(monkeypatch):
    with s3_server() as (_, endpoint):
        point_at(monkeypatch, endpoint)
        folder = new_folder(ROOT, 1)
        extents = open_extents(folder, DIM)
        extents.write(0, 1, np.zeros((4, DIM), np.float32))
    for verb in VERBS:
        assert "bring the store back" in refused(verb)
    with pytest.raises(UnreachableError):
        extents.read(0, 4, 1, None)


def test_a_server_that_never_answers_is_unreachable_within_the_stated_time(silent):
    assert "bring the store back" in refused("write")


@every_verb
def test_no_verb_waits_for_a_server_that_never_answers(silent, monkeypatch, verb):
    monkeypatch.setattr("orchestrator.store.objects.READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(
        "orchestrator.store.objects.DEADLINE_S", 1.0
    )  # a put waits for leave to send its bytes
    assert "bring the store back" in refused(verb)


def test_a_server_that_stops_taking_bytes_is_unreachable(silent, monkeypatch):
    monkeypatch.setattr("orchestrator.store.objects.DEADLINE_S", 2.0)
    monkeypatch.setattr("orchestrator.store.objects.SLOWEST_BYTES_PER_S", 2**26)
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="bring the store back"):
        open_extents(FOLDER, 2**10).write(0, 1, np.zeros((2**14, 2**10), np.float32))
    assert time.monotonic() - started < 10


@every_verb
def test_a_missing_bucket_is_named(s3_endpoint, monkeypatch, verb):
    point_at(monkeypatch, s3_endpoint)
    monkeypatch.setitem(globals(), "ROOT", "s3://no-such-bucket/root")
    monkeypatch.setitem(globals(), "FOLDER", f"s3://no-such-bucket/root/gallery-1/{'0' * 16}")
    assert "there is no such bucket; make it" in refused(verb)


@every_verb
@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch"])
def test_a_refusal_names_the_credentials_to_set(answering, verb, code):
    answering(403, code)
    assert "AWS_ACCESS_KEY_ID" in refused(verb)


def test_without_credentials_it_says_which_to_set(monkeypatch, tmp_path, s3_endpoint):
    point_at(monkeypatch, s3_endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv(
        "AWS_DEFAULT_REGION", "us-east-2"
    )  # fsspec keeps clients; this one is new in a new process
    code = f"from orchestrator.store import probe\nprobe({ROOT!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "AWS_ACCESS_KEY_ID" in done.stderr.splitlines()[-1]
    assert "UnreachableError" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded")])
@pytest.mark.parametrize("verb", ["write", "write_array", "new_folder", "probe"])
def test_a_full_object_store_is_a_full_store(answering, verb, status, code):
    answering(status, code)
    refused(verb, StoreFullError, match="Free space")


def test_a_server_that_breaks_is_unreachable(answering):
    answering(500, "InternalError")
    assert "No, InternalError; bring the store back" in refused("write")


def test_a_lost_server_that_comes_back_is_used_again(monkeypatch):
    vectors = np.ones((4, DIM), np.float32)
    with s3_server() as (server, endpoint):
        point_at(monkeypatch, endpoint)
        port = server.get_host_and_port()[1]
        extents = open_extents(FOLDER, DIM)
        extents.write(0, 1, vectors)
    with pytest.raises(UnreachableError):
        extents.write(0, 2, vectors)
    with s3_server(port):
        crc = extents.write(0, 3, vectors)
        np.testing.assert_array_equal(extents.read(0, 4, 3, crc), vectors)


def test_a_fork_makes_a_connection_of_its_own(request):
    place = place_of("s3", request)
    code = """if 1:
        import os, sys
        import numpy as np
        from orchestrator.store import open_extents
        extents = open_extents(sys.argv[1], 8)
        vectors = np.ones((4, 8), np.float32)
        crc = extents.write(0, 1, vectors)
        child = os.fork()
        if child == 0:
            extents.write(4, 1, vectors)
            os._exit(17 if (extents.read(0, 4, 1, crc) == 1).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert (extents.read(4, 4, 1, crc) == 1).all()
    """
    command = [sys.executable, "-c", code, f"{place.root}/gallery-1/{'0' * 16}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [2**10, 2**20])
def test_a_batch_is_one_put_request(request, caplog, size):
    place = place_of("s3", request)
    extents = open_extents(new_folder(place.root, 1), DIM)
    caplog.clear()
    with caplog.at_level("INFO", "werkzeug"):
        extents.write(0, 1, np.zeros((size // 32, DIM), np.float32))
        extents.read(0, size // 32, 1, None)
    lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    assert [line.split('"')[1].split()[0][-3:] for line in lines] == ["PUT", "GET"]


# -- what is asked of the URL and of the packages ----------------------------------------------------------------------


def test_credentials_in_the_url_are_refused_and_not_repeated():
    with pytest.raises(UsageError, match="set them in the environment") as caught:
        open_extents("s3://key:canary-secret@bucket/x", DIM)
    assert "canary-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense://bucket/x", "simplecache::s3://bucket/x"])
def test_an_unknown_scheme_names_what_there_is(url):
    with pytest.raises(UsageError, match="use a folder, s3://bucket/prefix"):
        open_extents(url, DIM)


@pytest.mark.parametrize(
    ("url", "command"), [("s3://b/x", "pip install 'hotrefresh[s3]'"), ("gs://b/x", "pip install gcsfs")]
)
def test_an_absent_package_is_named_with_the_command_that_installs_it(url, command):
    code = f"""if 1:
        import sys
        sys.modules["s3fs"] = sys.modules["gcsfs"] = None
        from orchestrator.errors import UsageError
        from orchestrator.store import probe
        try:
            probe({url!r})
        except UsageError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=60
    )
    assert command in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_local_store_loads_no_network_library():
    code = "import sys, orchestrator.store as s; s.list_folders('/nowhere'); print({'fsspec', 's3fs'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
