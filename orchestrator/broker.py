"""The broker only wakes workers: a message says "rollout R has work" and nothing else.

A lost, doubled or late message changes nothing, because the ledger owns the queue; workers also look by themselves.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from orchestrator.errors import UnreachableError
from orchestrator.settings import masked

QUEUE = "hotrefresh"
# Lanes between kinds of work, most urgent first. Brokers disagree on which end of 0–9 that is.
LANES = {"control": 0, "urgent": 2, "backfill": 5, "repair": 8}


def broker_priority(lane: str, broker_url: str) -> int:
    """A lane as this broker's message priority: Redis and Valkey serve 0 first, RabbitMQ 9 first."""
    level = LANES[lane]
    return 9 - level if broker_url.startswith(("amqp://", "amqps://")) else level


def make_app(broker_url: str) -> Celery:
    """A Celery application with the settings that hold up under kills and half-open connections."""
    app = Celery("hotrefresh", broker=broker_url, set_as_current=False)
    if broker_url.startswith(("redis://", "rediss://")):
        app.conf.broker_transport = "orchestrator.transport:Transport"
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=3,
        broker_transport_options={
            "priority_steps": list(range(10)),
            "queue_order_strategy": "priority",
            "visibility_timeout": 3600,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "max_retries": 1,
        },
    )
    return app


class Broker:
    """Rings workers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._app: Celery | None = None

    @property
    def app(self) -> Celery:
        if self._app is None:
            self._app = make_app(self.url)
        return self._app

    def ring(self, task: str, lane: str, *arguments: Any) -> None:
        """Say that there is work: `hotrefresh.<task>` with ids as arguments.

        Raises:
            UnreachableError: the broker does not answer. The work stands in the ledger all the same.
        """
        try:
            self.app.send_task(
                f"hotrefresh.{task}",
                args=list(arguments),
                priority=broker_priority(lane, self.url),
                retry=False,
            )
        except (OperationalError, OSError) as error:
            raise UnreachableError(
                f"the broker at {masked(self.url)} does not answer ({error}); the work is in the ledger and workers "
                "will find it. Start the broker, or correct HOTREFRESH_BROKER_URL."
            ) from error

    def close(self) -> None:
        """Give the connections back."""
        if self._app is not None:
            self._app.close()
            self._app = None
