"""A worker process: `hotrefresh worker`, or started in the background by a command that has work for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings

from celery.signals import setup_logging, worker_ready, worker_shutting_down

from orchestrator.bootstrap import open_context
from orchestrator.broker import worker_arguments
from orchestrator.errors import HotrefreshError
from orchestrator.settings import Settings
from workers.app import build_app
from workers.log import log
from workers.runtime import Runtime


def run_worker(settings: Settings, *, exit_when_idle_s: float | None = None) -> int:
    """Work until SIGTERM or Ctrl-C; finishes the batch at hand first. Returns the exit code."""
    # Two OpenMP runtimes live in one process (torch, faiss): one thread each, parallelism comes from processes.
    import torch
    from celery.platforms import SecurityWarning

    # Celery warns of running as root because of pickles; we accept JSON only.
    warnings.simplefilter("ignore", SecurityWarning)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    with open_context(settings) as context:
        runtime = Runtime(context, exit_when_idle_s=exit_when_idle_s)
        app = build_app(runtime)

        @setup_logging.connect(weak=False)
        def keep_our_logging(**_: object) -> None:
            """Celery leaves logging alone when somebody listens here."""

        @worker_ready.connect(weak=False)
        def begin(**_: object) -> None:
            """The broker answers, and messages come."""
            runtime.listening()

        @worker_shutting_down.connect(weak=False)
        def stop_draining(**_: object) -> None:
            """Claim nothing more. What is held is finished, or given back when that takes longer than a lease."""
            runtime.stop.set()
            hurry = threading.Timer(settings.lease_s, runtime.hurry.set)
            hurry.daemon = True
            hurry.start()

        _keep_sigterm_for_celery()
        runtime.start()
        try:
            with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
                app.worker_main(worker_arguments(runtime.id, settings.worker_queues))
        finally:
            runtime.close()
    return 0


def _keep_sigterm_for_celery() -> None:
    """From now on a SIGTERM is heard, also before Celery listens: it is passed on then.

    Until Celery has loaded its commands, half a second or more, one would end the process where it stands, without signing off.
    """

    def keep(*_: object) -> None:
        threading.Thread(target=pass_on, daemon=True).start()

    def pass_on() -> None:
        while signal.getsignal(signal.SIGTERM) is keep:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, keep)


def main() -> None:
    """`python -m workers.main [IDLE_S]`: the background worker that a command starts."""
    from orchestrator.settings import load_settings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal that started us is not for us
    idle_s = float(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        sys.exit(run_worker(load_settings(), exit_when_idle_s=idle_s))
    except HotrefreshError as error:
        log("worker.failed", level="error", message=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
