"""The proxy does to a connection what it says, no more and no less: otherwise the fault suite proves nothing."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.faults.proxy import CutAfter, CutWhen, HalfOpen, Moment, Pass, Proxy, Refuse, Side, Sliced, Slow


class Server:
    """Answers each line in capitals; keeps what it received, and in how many pieces it came."""

    def __init__(self, path: Path | None = None) -> None:
        self.received = b""
        self.ended = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.socket.bind(str(path) if path else ("127.0.0.1", 0))
        self.socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self):
        return self.socket.getsockname()

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        line = b""
        try:
            while data := connection.recv(65536):
                self.received += data
                line += data
                while b"\n" in line:
                    first, _, line = line.partition(b"\n")
                    connection.sendall(first.upper() + b"\n")
        except OSError:
            pass
        self.ended.set()
        connection.close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.socket.close()


@pytest.fixture
def proxy(server):
    with Proxy(server.address, seed=3) as opened:
        yield opened


def call(proxy, timeout_s=10.0):
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection, text=b"hello\n"):
    connection.sendall(text)
    return read(connection, len(text))


def read(connection, size):
    answer = b""
    while len(answer) < size:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError("the connection ended")
        answer += data
    return answer


def ends(connection):
    """Whether the connection is over, by FIN or RST."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_what_passes_is_whole_and_counted(proxy):
    text = bytes(range(97, 123)) * 40_000 + b"\n"
    first, second = call(proxy), call(proxy)
    assert ask(first, text) == text.upper()
    assert ask(second) == b"HELLO\n"
    counted = proxy.connections()
    assert [c.forwarded[Side.CLIENT] for c in counted] == [len(text), 6]
    assert [c.received[Side.SERVER] for c in counted] == [len(text), 6]
    assert [c.ended for c in counted] == [None, None]


def test_an_end_is_passed_on(proxy, server):
    connection = call(proxy)
    ask(connection)
    connection.close()
    assert server.ended.wait(5)
    wait(lambda: proxy.connections()[0].ended == "client")


def wait(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_half_open_swallows_without_an_end_and_stays_so(proxy, server):
    old = call(proxy, timeout_s=0.4)
    ask(old)
    proxy.set(HalfOpen())
    new = call(proxy, timeout_s=0.4)
    for connection in (old, new):
        connection.sendall(b"lost\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    proxy.set(Pass())
    with pytest.raises(TimeoutError):
        ask(old)
    fresh = call(proxy)
    assert ask(fresh) == b"HELLO\n"
    assert server.received == b"hello\nhello\n"
    old.close()
    assert not server.ended.wait(0.3), "the server is not told either"
    assert [c.half_open for c in proxy.connections()] == [True, True, False]


def test_half_open_now_leaves_new_connections_alone(proxy):
    old = call(proxy, timeout_s=0.3)
    ask(old)
    assert proxy.half_open_now() == 1
    assert ask(call(proxy)) == b"HELLO\n"
    with pytest.raises(TimeoutError):
        ask(old)


def test_slow_takes_the_time_it_says(proxy):
    connection = call(proxy)
    ask(connection)
    proxy.set(Slow(bytes_per_s=20_000))
    started = time.monotonic()
    assert ask(connection, b"x" * 4_999 + b"\n") == b"X" * 4_999 + b"\n"
    assert time.monotonic() - started >= 0.49, "5,000 bytes there and, when all are there, 5,000 back"


def test_slices_are_small_many_and_the_same_for_a_seed(server):
    seen = []
    for seed in (1, 1, 2):
        with Proxy(server.address, seed=seed) as proxy:
            proxy.set(Sliced(pause_s=0))
            connection = call(proxy)
            assert ask(connection, b"y" * 999 + b"\n") == b"Y" * 999 + b"\n"
            seen.append(proxy.connections()[0].pieces[Side.CLIENT])
    assert 1000 / 7 <= seen[0] <= 1000
    assert seen[0] == seen[1] != seen[2]


def test_a_slice_arrives_as_a_slice(proxy):
    proxy.set(Sliced(pause_s=0.002))
    connection = call(proxy)
    connection.sendall(b"z" * 30 + b"\n")
    first = connection.recv(65536)
    assert 1 <= len(first) < 31
    assert first + read(connection, 31 - len(first)) == b"Z" * 30 + b"\n"


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 11])
def test_a_cut_after_bytes_of_the_client_forwards_exactly_these(proxy, server, n_bytes):
    proxy.set(CutAfter(n_bytes, Side.CLIENT))
    connection = call(proxy)
    connection.sendall(b"twelve bytes")
    assert ends(connection)
    assert server.ended.wait(5)
    assert server.received == b"twelve bytes"[:n_bytes]
    assert ask(call(proxy)) == b"HELLO\n", "once, as asked"
    assert proxy.cuts == 1


def test_a_cut_after_bytes_of_the_server_lets_the_question_through(proxy, server):
    proxy.set(CutAfter(3, Side.SERVER))
    connection = call(proxy)
    connection.sendall(b"hello\n")
    wait(lambda: proxy.cuts == 1)
    wait(lambda: proxy.connections()[0].ended == "cut")
    assert server.received == b"hello\n"
    assert proxy.connections()[0].forwarded[Side.SERVER] == 3


@pytest.mark.parametrize("pieces", [[b"do COMMIT now\n"], [b"do COM", b"MIT", b" now\n"]])
@pytest.mark.parametrize("moment", list(Moment))
def test_a_cut_at_a_pattern_comes_when_it_says(proxy, server, moment, pieces):
    proxy.set(CutWhen(b"COMMIT", Side.CLIENT, moment))
    connection = call(proxy)
    for piece in pieces:
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        time.sleep(0.06)
    assert ends(connection)
    wait(lambda: proxy.cuts == 1)
    assert server.ended.wait(5)
    whole = b"".join(pieces)
    if moment is Moment.BEFORE:
        assert server.received == b"do COMMI"
    elif moment is Moment.FORWARDED:
        assert server.received.startswith(b"do COMMIT")
    else:
        assert server.received == whole
        assert proxy.connections()[0].received[Side.SERVER] == len(whole)
    assert proxy.connections()[0].forwarded[Side.SERVER] == 0
    assert ask(call(proxy), b"COMMIT\n") == b"COMMIT\n", "once, as asked"


def test_a_pattern_of_the_server_is_seen_too_and_may_be_let_through_first(proxy):
    proxy.set(CutWhen(b"OK", Side.SERVER, Moment.BEFORE, skip=2, times=2))
    outcomes = []
    for _ in range(6):
        try:
            outcomes.append(ask(call(proxy), b"ok\n") == b"OK\n")
        except ConnectionError:
            outcomes.append(False)
    assert outcomes == [True, True, False, False, True, True]


def test_refused_is_refused_and_what_lives_goes_on(proxy):
    connection = call(proxy)
    ask(connection)
    proxy.set(Refuse())
    with pytest.raises(ConnectionRefusedError):
        call(proxy)
    assert ask(connection) == b"HELLO\n"
    proxy.set(Pass())
    assert ask(call(proxy)) == b"HELLO\n"


def test_reset_all_cuts_what_lives(proxy):
    connection = call(proxy)
    ask(connection)
    proxy.reset_all()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_a_target_that_is_away_ends_the_connection():
    with Proxy(("127.0.0.1", 9)) as proxy:
        assert ends(call(proxy))


def test_a_unix_socket_is_led_to_tcp_and_to_a_unix_socket(server, tmp_path):
    behind = Server(tmp_path / "behind")
    for number, target in enumerate((server.address, tmp_path / "behind")):
        with Proxy(target, listen=tmp_path / f"front-{number}") as proxy:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(5)
            connection.connect(str(proxy.address))
            assert ask(connection) == b"HELLO\n"
        assert not (tmp_path / f"front-{number}").exists()
    behind.socket.close()
