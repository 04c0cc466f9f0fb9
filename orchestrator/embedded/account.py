"""Who runs the servers. PostgreSQL refuses to run as root, so for root it is somebody else.

That somebody must reach the data folder and the wheels' programs, which may lie under a folder closed to others (a clone
in `mktemp -d`, /root). We never open folders that are not ours. Instead the first of these ways that works is taken:

1. the unprivileged user, as is;
2. the same, keeping one capability: to pass file permissions (CAP_DAC_OVERRIDE);
3. a user namespace, in which root has another number.

The last one also serves a user without an entry in the system's list of users, whom initdb refuses.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from orchestrator.errors import UnreachableError

_PR_SET_PDEATHSIG, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE = 0x20080522, 1
_CLONE_NEWUSER = 0x10000000
# Programs that do not start leave the shell's status, which is not 0; a closed or read-only folder leaves 1.
_PROBE = 'cd "$1" && test -w . || exit 1; shift; for each; do "$each" --version >/dev/null || exit 1; done'


class Way(Enum):
    """How a child stops being root."""

    AS_WE_ARE = "as the user we are"
    DROP = "as an unprivileged user"
    KEEP_FILE_ACCESS = "as an unprivileged user that may pass file permissions"
    NAMESPACE = "in a user namespace"


@dataclass(frozen=True)
class Account:
    """The user and group that servers run as, and the way there. Their files belong to `uid`, `gid`."""

    way: Way
    uid: int
    gid: int

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        output: IO[bytes] | int,
        death_signal: signal.Signals,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a child in a session of its own; on Linux it gets `death_signal` when the calling thread ends."""
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=_before_exec(self, death_signal),
        )

    def run(self, command: Sequence[str | Path], *, folder: Path, text: str = "") -> str:
        """Run a command with `text` as its input and return its output; CalledProcessError when it fails."""
        child = self.popen(
            command, folder=folder, output=subprocess.PIPE, stdin=subprocess.PIPE, death_signal=signal.SIGKILL
        )
        output = child.communicate(text.encode())[0].decode(errors="replace")
        if child.returncode != 0:
            raise subprocess.CalledProcessError(child.returncode, [str(command[0])], output)
        return output

    def own(self, path: Path) -> None:
        """Make a path and all in it the account's. The top comes last, so that an interrupted change is begun again."""
        if self.way is Way.AS_WE_ARE or (path.stat().st_uid, path.stat().st_gid) == (self.uid, self.gid):
            return
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                os.lchown(Path(folder) / name, self.uid, self.gid)
            os.lchown(folder, self.uid, self.gid)
        os.lchown(path, self.uid, self.gid)


def choose_account(folder: Path, programs: Sequence[Path]) -> Account:
    """The account for servers whose data lie under `folder`.

    Raises:
        UnreachableError: we are root, and no other user can reach the folder or the programs.
    """
    us = os.geteuid(), os.getegid()
    uid, gid = _unprivileged(folder)
    linux = sys.platform.startswith("linux")
    namespace = [Account(Way.NAMESPACE, *us)] if linux else []
    if us[0] != 0:
        ways = [*([] if _is_listed(us[0]) else namespace), Account(Way.AS_WE_ARE, *us)]
    else:
        keep_file_access = [Account(Way.KEEP_FILE_ACCESS, uid, gid)] if linux else []
        ways = [Account(Way.DROP, uid, gid), *keep_file_access, *namespace]
    if len(ways) == 1:
        return ways[0]
    for account in ways:
        if _works(account, folder, programs):
            return account
    closed = [path for path in (_closed_ancestor(path) for path in (folder, *programs)) if path is not None]
    reason = (
        f"{closed[0]} is closed to other users"
        if closed
        else "this system lets root start no process as another user"
    )
    raise UnreachableError(
        f"PostgreSQL does not run as root, and no other user can run it here: {reason}. Run hotrefresh as a normal user, "
        "or set HOTREFRESH_DATA_DIR to a folder (and install into one) that every user can reach, such as one under /var/tmp."
    )


def _unprivileged(folder: Path) -> tuple[int, int]:
    """The owner of a folder that a normal user made, so that this user can go on with it; else nobody."""
    found = folder.stat()
    if found.st_uid != 0 and _is_listed(found.st_uid):
        return found.st_uid, found.st_gid
    return _nobody()


def _nobody() -> tuple[int, int]:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return 65_534, 65_534
    return nobody.pw_uid, nobody.pw_gid


def _is_listed(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _works(account: Account, folder: Path, programs: Sequence[Path]) -> bool:
    """Whether a child of this account can write in a folder of its own in `folder` and run the programs."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as scratch:
        try:
            os.chown(scratch, account.uid, account.gid)
            account.run(["/bin/sh", "-c", _PROBE, "sh", scratch, *programs], folder=folder)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


def _closed_ancestor(path: Path) -> Path | None:
    """The outermost folder above a path that others cannot walk through."""
    return next(
        (folder for folder in reversed(path.resolve().parents) if not folder.stat().st_mode & 0o001), None
    )


def _before_exec(account: Account, death_signal: signal.Signals) -> Callable[[], None]:
    parent, inside = os.getpid(), _nobody()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the keeper ignores it, and that would be inherited
        if account.way is Way.NAMESPACE:
            assert libc is not None
            _enter_namespace(libc, account, inside)
        elif account.way is not Way.AS_WE_ARE:
            keep = account.way is Way.KEEP_FILE_ACCESS
            if keep:
                assert libc is not None
                # The change of user leaves capabilities alone, and so does access(2), by which initdb checks programs.
                _checked(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            if keep:
                assert libc is not None
                _keep_file_access(libc)
        if libc is not None:
            # After the change of user, which clears it. The parent may have died before it could count.
            _checked(libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0))
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def _keep_file_access(libc: ctypes.CDLL) -> None:
    """Give up every capability but CAP_DAC_OVERRIDE, and carry that one through exec (capabilities(7), "ambient")."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << _CAP_DAC_OVERRIDE
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    _checked(libc.capset(header, effective_permitted_inheritable))
    _checked(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


def _enter_namespace(libc: ctypes.CDLL, account: Account, inside: tuple[int, int]) -> None:
    """A namespace in which we have nobody's number: PostgreSQL sees no root, the file system still sees the owner."""
    _checked(libc.unshare(_CLONE_NEWUSER))
    maps = (
        ("setgroups", "deny"),
        ("uid_map", f"{inside[0]} {account.uid} 1"),
        ("gid_map", f"{inside[1]} {account.gid} 1"),
    )
    for name, text in maps:
        Path(f"/proc/self/{name}").write_text(text)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
