"""Starting a server as our child: it dies with us, and never runs as root."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65_534


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on. OSError when there is none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str], *, folder: Path, output: IO[bytes], as_user: bool = False, death_signal: int = signal.SIGINT
) -> subprocess.Popen[bytes]:
    """Start a child that gets `death_signal` when this process dies; as nobody when we are root and `as_user`."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_before_exec(death_signal, as_user and os.geteuid() == 0, [folder, Path(command[0])]),
    )


def run(command: Sequence[str], *, folder: Path, as_user: bool = False) -> None:
    """Run a command to its end; CalledProcessError with its output when it fails."""
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_before_exec(signal.SIGKILL, as_user and os.geteuid() == 0, [folder, Path(command[0])]),
    )


def own_by_nobody(*paths: Path) -> None:
    """Give paths of ours to the unprivileged user; nothing when we are not root."""
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)


def _before_exec(death_signal: int, drop_root: bool, needed: Sequence[Path]) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    closed = drop_root and any(not _open_to_all(path) for path in needed)

    def prepare() -> None:
        if drop_root:
            if closed:
                libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            if closed:
                _keep_file_access(libc)
        # Last: a change of user clears it.
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)

    return prepare


def _open_to_all(path: Path) -> bool:
    """Whether a stranger can walk to a path: every folder above it has o+x. We never change folders that are not ours."""
    return all(parent.stat().st_mode & 0o001 for parent in path.absolute().parents)


def _keep_file_access(libc: ctypes.CDLL) -> None:
    """Keep CAP_DAC_OVERRIDE through exec: the data folder or the wheel lies under a folder closed to others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << _CAP_DAC_OVERRIDE
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if libc.capset(header, data) != 0 or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0) != 0:
        os.write(2, b"cannot keep access to a closed folder: set HOTREFRESH_DATA_DIR to a folder that other users can\n"
                    b"reach, or run as a normal user\n")  # fmt: skip
        os._exit(77)
