"""The Celery application of a worker process: tasks parse, call one service function, return."""

from __future__ import annotations

from celery import Celery

from orchestrator.broker import make_app
from orchestrator.failpoints import reach
from workers.runtime import Runtime


def build_app(runtime: Runtime) -> Celery:
    """The application with our tasks, bound to one process's runtime."""
    app = make_app(runtime.context.broker.url)

    @app.task(name="hotrefresh.advance")
    def advance(rollout_id: int) -> None:
        """A rollout stands before its next step: deploy, plan; then drain."""
        runtime.advance(int(rollout_id))

    @app.task(name="hotrefresh.drain")
    def drain(rollout_id: int) -> None:
        """A rollout has batches to claim."""
        reach("heard")
        runtime.drain(int(rollout_id))
        reach("acked")

    @app.task(name="hotrefresh.evaluate")
    def evaluate(rollout_id: int) -> None:
        """A rollout's log has entries whose flips are not counted yet."""
        runtime.evaluate(int(rollout_id))

    return app
