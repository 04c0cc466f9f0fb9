"""`python -m workers.leash PARENT_PID COMMAND …`: become COMMAND, and be killed when the parent ends.

Linux does that (PR_SET_PDEATHSIG; kept across exec, for the thread that started us). It is asked for here, after exec,
because a fork of a process with threads may do next to nothing before exec. Elsewhere there is no such thing: a worker whose
supervisor was killed with SIGKILL works on, unsupervised, and keeps the embedded servers' keeper alive, until it is
stopped or leaves when idle. Nothing is lost either way: leases and fences do not depend on supervision.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the supervisor ended before its worker began")
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
