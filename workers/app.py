"""The Celery application of a worker process: tasks parse two ids, call one function of the runtime, return.

A wake-up says "rollout R has work" and nothing else; its second id is the outbox row that asked for it. Arguments that are
not two positive integers are refused: nothing of a message is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from orchestrator.broker import TASKS, make_app, task_edge
from orchestrator.failpoints import reach
from workers.log import log
from workers.runtime import Runtime


def build_app(runtime: Runtime) -> Celery:
    """The application with our tasks, bound to one process's runtime."""
    app = make_app(runtime.context.broker.url)
    for name in TASKS:
        app.task(name=f"hotrefresh.{name}")(task_edge(_task(name, getattr(runtime, name))))
    return app


def _task(name: str, work: Callable[[int], None]) -> Callable[..., None]:
    def run(*arguments: Any, **keywords: Any) -> None:
        if keywords or len(arguments) != 2 or not all(_is_id(a) for a in arguments):
            log("wakeup.refused", level="warning", task=name, message="not two ids")
            return
        reach("heard")
        work(arguments[0])
        reach("acked")

    run.__name__ = name
    run.__doc__ = f"Wake-up of `{name}`."
    return run


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
