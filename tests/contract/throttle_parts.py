"""What the tests of throttles share: an endpoint on loopback, engines, and tables that parse."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.ledger.database import open_engine
from orchestrator.throttles import Surroundings, parse_throttles

HTTP = {"kind": "http", "limit": 5, "url": "http://127.0.0.1:1/"}
SQL = {"kind": "sql", "limit": 5, "query": "SELECT 1"}
HOURS = {"kind": "hours", "allow": ["22:00-06:00"], "tz": "Europe/Berlin"}
NOON = datetime(2025, 6, 2, 12, 0, tzinfo=UTC)


class Endpoint(ThreadingHTTPServer):
    """Answers what the test puts in."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status, self.body, self.headers, self.wait_s, self.drip_s = 200, b"1", {}, 0.0, 0.0
        self.asked = 0
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        server = self.server
        server.asked += 1
        if server.wait_s:
            server.release.wait(server.wait_s)
        try:
            self.send_response(server.status)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in server.body if server.drip_s else [server.body]:
                self.wfile.write(bytes([byte]) if server.drip_s else byte)
                self.wfile.flush()
                if server.drip_s:
                    server.release.wait(server.drip_s)
        except ConnectionError:
            pass  # the probe gave up, as it should

    def log_message(self, *_: object) -> None:
        """Nothing on the test's stderr."""


@contextmanager
def serving():
    server = Endpoint()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def endpoint():
    with serving() as server:
        yield server


@pytest.fixture
def engine(settings):
    engine = open_engine(settings.database_url, pooled=False)
    yield engine
    engine.dispose()


@pytest.fixture
def nowhere():
    """An engine to a port where nobody listens, for probes that need no database."""
    engine = open_engine("postgresql://x@127.0.0.1:9/x", pooled=False)
    yield engine
    engine.dispose()


def probe(**table):
    return parse_throttles([table])[0].probe


def read(table, engine, now=NOON, **environment):
    return probe(**table).read(Surroundings(engine, now, environment))
