"""Private brokers for tests: each in a folder of its own, on free loopback ports, gone at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.embedded import ports

START_TIMEOUT_S = 60.0
DEBIAN_RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # what is on the path refuses users of one's own


def until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "it") -> None:
    """Wait for something to become true; the time-out is for a hanging test, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came true in {timeout_s:.0f} s"
        time.sleep(0.02)


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server as a child in a session of its own; the whole session is ended with it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield child.pid
    finally:
        for name in (signal.SIGTERM, signal.SIGKILL):
            if child.poll() is None:
                os.killpg(child.pid, name)
                try:
                    child.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue


def listens(port: int, hello: bytes, answer: bytes) -> bool:
    """Whether a server of the right kind answers on this port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(hello)
            return answer in connection.recv(4096)
    except OSError:
        return False


@contextmanager
def _of_redis_kind(program: str, folder: Path) -> Iterator[str]:
    port = ports.choose(None)
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    with process(command, folder / "server.log"):
        until(lambda: listens(port, b"PING\r\n", b"PONG"), START_TIMEOUT_S, f"{program} answering")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """The Valkey of the wheel."""
    from orchestrator.embedded.valkey import program

    with _of_redis_kind(str(program()), folder) as url:
        yield url


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The redis-server of this machine."""
    with _of_redis_kind(installed("redis-server"), folder) as url:
        yield url


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """The rabbitmq-server of this machine, with a port mapper, a cookie and a database of its own and no plug-in."""
    program = installed("rabbitmq-server")
    if Path(DEBIAN_RABBITMQ).exists():
        program = DEBIAN_RABBITMQ
    port, mapper, distribution = (ports.choose(None) for _ in range(3))
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{port}\n")
    cookie = folder / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"hotrefresh{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    with (
        process([installed("epmd"), "-port", str(mapper)], folder / "epmd.log", environment),
        process([program], folder / "server.log", environment),
    ):
        until(
            lambda: listens(port, b"AMQP\x00\x00\x09\x01", b"RabbitMQ"), START_TIMEOUT_S, "RabbitMQ answering"
        )
        yield f"amqp://guest:guest@127.0.0.1:{port}//"


def installed(program: str) -> str:
    """The program's path; a test without it is skipped and says how to get it."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        package = {"epmd": "rabbitmq-server"}.get(program, program)
        pytest.skip(f"{program} is not installed. Run: apt-get install -y {package}")
    return found


SERVERS = {"valkey": valkey, "redis": redis, "rabbitmq": rabbitmq}
