"""Named places at which the fault suite makes a process die, freeze or fail. Nothing happens unless one is armed.

Armed by environment: `HOTREFRESH_FAIL_POINTS="claimed=kill:3,synced=freeze"` kills the process with SIGKILL the third
time it reaches `claimed`. A process that was not told `HOTREFRESH_TESTING=1` as well refuses to start.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from types import MappingProxyType

from orchestrator.errors import UsageError

VARIABLE, TESTING = "HOTREFRESH_FAIL_POINTS", "HOTREFRESH_TESTING"

BATCH_POINTS = (
    "heard",  # a wake-up was received
    "in_claim",  # the claim's statement ran, its transaction is open
    "claimed",
    "decoded",
    "mid_encode",
    "before_write",
    "mid_write",  # half of the bytes are written
    "written",  # all are, none is known to be on disk
    "synced",
    "in_commit",  # right before the commit is sent
    "commit_unseen",  # the commit landed, its answer was not seen
    "committed",  # seen, the wake-up is not acknowledged yet
    "acked",
)
REPLICA_POINTS = ("replica_read", "replica_mid_apply", "replica_applied")
CONTROL_POINTS = ("before_insert", "inserted", "published", "in_state_change")
SNAPSHOT_POINTS = (
    "snapshot_begun",  # an empty file is there
    "snapshot_copying",  # some rows are copied, batches may come
    "snapshot_written",  # all bytes are written, none is known to be on disk
    "snapshot_synced",  # all are on disk, under no name that is read
    "snapshot_named",
)
PLAN_POINTS = ("revision_written",)  # the file of a plan's revision is there, the ledger does not know it
POINTS = frozenset((*BATCH_POINTS, *REPLICA_POINTS, *CONTROL_POINTS, *PLAN_POINTS, *SNAPSHOT_POINTS))


class InjectedError(RuntimeError):
    """What the action `raise` raises."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    """This thread goes no further; the others, which beat and renew, do."""
    threading.Event().wait()


def _raise() -> None:
    raise InjectedError("a fail point raised")


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _io_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _reset() -> None:
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


ACTIONS = MappingProxyType(
    {
        "kill": _kill,
        "freeze": _freeze,
        "hang": _hang,
        "raise": _raise,
        "disk_full": _disk_full,
        "io_error": _io_error,
        "reset": _reset,
    }
)


class _Armed:
    """One armed point: acts once, the `countdown`-th time it is reached."""

    def __init__(self, act: Callable[[], None], countdown: int) -> None:
        self._act = act
        self._countdown = countdown
        self._lock = threading.Lock()

    def reach(self) -> None:
        with self._lock:
            self._countdown -= 1
            due = self._countdown == 0
        if due:
            self._act()


_armed: dict[str, _Armed] = {}


def reach(point: str) -> None:
    """Say that the process is at this place."""
    if _armed and (armed := _armed.get(point)) is not None:
        armed.reach()


def arm(text: str) -> None:
    """Arm points: `point=action[:nth]`, separated by commas; an empty text disarms all.

    Raises:
        UsageError: no such point or action.
    """
    parsed = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        point, _, rest = part.partition("=")
        action, _, nth = rest.partition(":")
        if point not in POINTS or action not in ACTIONS or not (nth or "1").isdigit():
            raise UsageError(
                f"{VARIABLE} holds {part!r}; write POINT=ACTION[:NTH] with a point of {', '.join(sorted(POINTS))} "
                f"and an action of {', '.join(ACTIONS)}."
            )
        parsed[point] = _Armed(ACTIONS[action], int(nth or 1))
    _armed.clear()
    _armed.update(parsed)


def arm_from_environment() -> None:
    """Arm what the environment names; called when a process opens its context.

    Raises:
        UsageError: points are named and the process was not told that it is a test.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return
    if os.environ.get(TESTING) != "1":
        raise UsageError(
            f"{VARIABLE} is set: this process would damage itself on purpose. Unset it; only the fault suite sets it, "
            f"together with {TESTING}=1."
        )
    arm(text)
