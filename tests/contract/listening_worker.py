"""A real worker process for tests: `python -m tests.contract.listening_worker FILE POOL QUEUE…` (broker in BROKER_URL).

Its tasks append a line with their name and arguments to FILE; a first argument of −1 runs out of memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.broker import TASKS, make_app, task_edge, worker_arguments


def main() -> None:
    heard, pool, queues = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    app = make_app(os.environ["BROKER_URL"])
    edge = task_edge if os.environ.get("WITHOUT_EDGE") is None else (lambda body: body)

    def register(name: str) -> None:
        @app.task(name=f"hotrefresh.{name}")
        @edge
        def task(*arguments: int) -> None:
            with heard.open("a") as file:
                file.write(f"{name} {' '.join(map(str, arguments))}\n")
            if arguments[0] == -1:
                raise MemoryError("asked to")

    for name in TASKS:
        register(name)
    app.worker_main(worker_arguments("listening@test", queues, pool=pool, concurrency=1))


if __name__ == "__main__":
    main()
