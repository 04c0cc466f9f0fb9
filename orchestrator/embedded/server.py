"""What the two embedded servers share: started as the keeper's children, never two on one folder, ended with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, ClassVar

from orchestrator.embedded import files, ports
from orchestrator.embedded.account import Account
from orchestrator.errors import UnreachableError

_ATTEMPTS = 3
_POLL_S = 0.005


class Server(ABC):
    """One server on one data folder. `begin` and `wait_ready` are apart so that two can start side by side."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]  # a clean end
    quit_signal: ClassVar[signal.Signals]  # an end at once, for one that does not come to its clean end
    taken: ClassVar[str]  # what it says when it cannot listen on its port
    ready_timeout_s: ClassVar[float]
    stop_timeout_s: ClassVar[float] = 20.0

    def __init__(self, folder: Path, account: Account, port: int | None = None) -> None:
        self.home = folder / self.name.lower()
        self.account = account
        self.log = self.home.with_suffix(".log")
        self.port = port
        self.child: subprocess.Popen[bytes] | None = None
        self._password_file = folder / f"{self.name.lower()}.password"
        self._log_begins = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it answers, with its password."""

    @abstractmethod
    def prepare(self) -> None:
        """Make `home` ready for a start. No other process of this server uses it."""

    @abstractmethod
    def command(self) -> list[str | Path]:
        """The command that listens on `port`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the child takes connections."""

    def repair(self, messages: str) -> bool:
        """Mend what kept it from starting, if that is known; says whether another try makes sense."""
        del messages
        return False

    def begin(self, *, patience_s: float = 0.0) -> None:
        """Start it. Its port stays, if it gets free within `patience_s`: users hold the URL."""
        with self._claim() as claim, files.open_log(self.log) as output:
            self._log_begins = output.tell()
            self.prepare()
            self.port = ports.choose(self.port, patience_s=patience_s)
            # The lock passes on to the server and all its children, and is free when the last of them has ended.
            self.child = self.account.popen(
                self.command(),
                folder=self.home,
                output=output,
                death_signal=self.stop_signal,
                pass_fds=(claim.fileno(),),
            )

    def wait_ready(self) -> None:
        """Wait until it answers; another port if somebody took the first before it could listen.

        Raises:
            UnreachableError: it did not start; with its last messages.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            deadline = time.monotonic() + self.ready_timeout_s
            while self.running() and time.monotonic() < deadline:
                if self.answers():
                    return
                time.sleep(_POLL_S)
            timed_out = self.running()
            self.end()
            messages = self._messages()
            in_use = self.taken in messages
            if timed_out or attempt == _ATTEMPTS or not (in_use or self.repair(messages)):
                break
            self.port = None if in_use else self.port
            self.begin()
        reason = f"did not answer within {self.ready_timeout_s:.0f} s" if timed_out else "did not start"
        raise UnreachableError(
            f"{self.name} {reason}: {' | '.join(messages.splitlines()[-6:]) or 'no messages'}"
        )

    def running(self) -> bool:
        """Whether the child lives."""
        return self.child is not None and self.child.poll() is None

    def ask_to_stop(self) -> None:
        """Begin a clean end."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(self.stop_signal)

    def end(self) -> None:
        """A clean end, or the end."""
        self.ask_to_stop()
        if self.child is None:
            return
        for timeout_s, harder in ((self.stop_timeout_s, self.quit_signal), (3.0, signal.SIGKILL)):
            try:
                self.child.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self.child.send_signal(harder)
        self.child.wait()

    def password(self) -> tuple[str, bool]:
        """The password, and whether it had to be made now. It is on disk, readable by us alone, when this returns."""
        with contextlib.suppress(FileNotFoundError):
            kept = self._password_file.read_text().strip()
            if kept:
                return kept, False
        made = secrets.token_urlsafe(24)
        partial = self._password_file.with_suffix(".password.new")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._password_file)
        return made, True

    def _claim(self) -> IO[bytes]:
        """The lock of the data folder. A killed keeper's server may need a moment to end, and help after that."""
        path = self.home.with_suffix(".lock")
        for timeout_s, then in (
            (0.3, self.stop_signal),
            (10.0, self.quit_signal),
            (3.0, signal.SIGKILL),
            (3.0, None),
        ):
            with contextlib.suppress(TimeoutError):
                return files.take(path, timeout_s=timeout_s)
            if then is not None:
                self._signal_leftovers(then)
        raise UnreachableError(
            f"another process holds {path} and does not end. Find it (`fuser {path}`) and end it, then try again."
        )

    def _signal_leftovers(self, number: signal.Signals) -> None:
        """Send a signal to what runs in `home`: a killed keeper's server, or children of a killed server."""
        import psutil

        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.cwd()) == self.home.resolve():
                    process.send_signal(number)

    def _messages(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._log_begins)
            return file.read().decode(errors="replace").strip()
