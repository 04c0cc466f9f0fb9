"""The broker only wakes workers: a message says "rollout R has work" and nothing else.

A lost, doubled or late message changes nothing, because the ledger owns the queue; workers also look by themselves.
Redis, Valkey and RabbitMQ differ in what they call urgent and in how a dead connection is noticed: that stays here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from orchestrator.errors import HotrefreshError, UnreachableError, UsageError
from orchestrator.settings import masked

TASKS = MappingProxyType(
    {
        "deploy": "control",
        "plan": "control",
        "finalize": "control",
        "sweep": "control",
        "evaluate": "cpu",
        "drain": "gpu",
    }
)
"""Every task and the queue it waits in."""

QUEUES = ("control", "cpu", "gpu")
"""What a worker can be told to listen to. A broker may serve others too, so there the names carry ours."""

# Lanes between kinds of work, most urgent first. Brokers disagree on which end of 0–9 that is.
LANES = {"control": 0, "urgent": 2, "backfill": 5, "retry": 6, "repair": 8}
MOST_PRIORITY = 9

WINDOW = 256
"""So many wake-ups may wait in a queue; urgent lanes have as many places again, which the others cannot take."""

LONGEST_TASK_S = 1800
"""No task may take longer: brokers hand out again what was not acknowledged after twice this time."""
VISIBILITY_S = 2 * LONGEST_TASK_S

Application = Celery

_RABBITMQ = ("amqp://", "amqps://", "pyamqp://")


def is_rabbitmq(broker_url: str) -> bool:
    """Whether the URL is one of RabbitMQ; otherwise it is one of Redis or Valkey, which speak alike."""
    return broker_url.startswith(_RABBITMQ)


def broker_priority(lane: str, broker_url: str) -> int:
    """A lane as this broker's message priority: Redis and Valkey serve 0 first, RabbitMQ 9 first."""
    level = LANES[lane]
    return MOST_PRIORITY - level if is_rabbitmq(broker_url) else level


def window_of(lane: str) -> int:
    """How many wake-ups may wait in a queue before one of this lane is left out."""
    return 2 * WINDOW if LANES[lane] <= LANES["urgent"] else WINDOW


def queue_of(task: str) -> str:
    """The queue of a task, one of QUEUES.

    Raises:
        UsageError: no such task.
    """
    try:
        return TASKS[task.removeprefix("hotrefresh.")]
    except KeyError:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.") from None


def broker_queue(queue: str) -> str:
    """A queue's name in the broker."""
    return f"hotrefresh.{queue}"


def listen_to(queues: Sequence[str] = QUEUES) -> str:
    """What a worker's `-Q` takes to listen to these queues.

    Raises:
        UsageError: none, or one that does not exist.
    """
    if not queues or (unknown := [queue for queue in queues if queue not in QUEUES]):
        what = f"there is no queue {unknown[0]!r}" if queues else "a worker needs a queue to listen to"
        raise UsageError(f"{what}; name one or more of {', '.join(QUEUES)}.")
    return ",".join(broker_queue(queue) for queue in dict.fromkeys(queues))


def worker_arguments(
    hostname: str, queues: Sequence[str] = QUEUES, *, pool: str = "threads", concurrency: int = 2
) -> list[str]:
    """The arguments of `app.worker_main`: which queues, and without what could be had from the command line only.

    Gossip, mingle and event heartbeats are remote control by other names: workers are known by the ledger's heartbeat.

    Raises:
        UsageError: a queue that does not exist.
    """
    return [
        "--quiet", "worker", f"--pool={pool}", f"--concurrency={concurrency}", f"--queues={listen_to(queues)}",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING", f"--hostname={hostname}",
    ]  # fmt: skip


def make_app(broker_url: str) -> Celery:
    """A Celery application with the settings that hold up under kills and half-open connections."""
    app = Celery("hotrefresh", broker=broker_url, set_as_current=False)
    if not is_rabbitmq(broker_url):
        app.conf.broker_transport = "orchestrator.transport:Transport"
    app.conf.update(settings_for(broker_url))
    app.conf.update(
        task_queues=[_declared(queue, broker_url) for queue in QUEUES],
        task_default_queue=broker_queue("control"),
        task_routes={f"hotrefresh.{task}": {"queue": broker_queue(queue)} for task, queue in TASKS.items()},
    )
    return app


def settings_for(broker_url: str) -> dict[str, Any]:
    """The settings that the doctor holds an application to: every one was measured, none is a matter of taste."""
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],  # a serializer set only for sending would still take pickles
        "result_accept_content": ["json"],
        "event_serializer": "json",
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,  # the ledger retries, not the broker
        "task_reject_on_worker_lost": True,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "result_backend": None,
        "task_publish_retry": False,  # the outbox does
        "task_create_missing_queues": False,
        "task_send_sent_event": False,
        "worker_pool": "threads",  # CUDA does not survive a fork, and a killed child of prefork keeps its message
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # for ever: a worker outlives its broker
        "broker_connection_timeout": 3,
        # RabbitMQ only, Redis has health_check_interval. A worker hears again two to three beats after its connection
        # went half-open: 24 s with 10.
        "broker_heartbeat": 5,
        "broker_transport_options": _rabbitmq_options() if is_rabbitmq(broker_url) else _redis_options(),
    }


def _redis_options() -> dict[str, Any]:
    """Redis has no heartbeat of its own: without time-outs a half-open connection is waited on for ever."""
    return {
        "priority_steps": list(range(MOST_PRIORITY + 1)),
        "queue_order_strategy": "priority",
        "visibility_timeout": VISIBILITY_S,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "max_retries": 1,
    }


def _rabbitmq_options() -> dict[str, Any]:
    """Heartbeats find dead connections of a worker; a publisher, which sends none, needs the time-outs."""
    return {
        "confirm_publish": True,  # a message that the broker never took is an error, not a success
        "confirm_timeout": 5,
        "read_timeout": 5,
        "write_timeout": 5,
        "max_retries": 1,
    }


def _declared(queue: str, broker_url: str) -> Queue:
    """One queue. In RabbitMQ a classic one: quorum queues know two priorities, we need ten."""
    name = broker_queue(queue)
    options: dict[str, Any] = {}
    if is_rabbitmq(broker_url):
        options["max_priority"] = MOST_PRIORITY
        options["queue_arguments"] = {"x-queue-type": "classic", "x-consumer-timeout": VISIBILITY_S * 1000}
    exchange = Exchange(name, type="direct", durable=True)  # type: ignore[no-untyped-call]
    return Queue(name, exchange, name, durable=True, **options)  # type: ignore[no-untyped-call]


def task_edge(body: Callable[..., None]) -> Callable[..., None]:
    """Stand between Celery and the body of a task: running out of memory becomes an ordinary error.

    Celery lets a MemoryError pass as if the process were lost: a pool of threads then never acknowledges the message,
    and the thread's place among the prefetched ones stays taken. As an ordinary error it is acknowledged, and the
    ledger hands the work out again.
    """

    @wraps(body)
    def at_the_edge(*arguments: Any, **named: Any) -> None:
        try:
            body(*arguments, **named)
        except MemoryError as error:
            raise HotrefreshError(
                f"the worker ran out of memory ({str(error) or 'no details'}). The work stays in the ledger and is tried "
                "again; give the worker more memory, or the rollout a smaller batch_size."
            ) from None  # the frames of the failed call hold what filled the memory

    return at_the_edge


@contextmanager
def _library_errors(producer: Any) -> Iterator[None]:
    """Whatever the client of the broker raises, as kombu's one error for it."""
    try:
        yield
    except (*producer.connection.connection_errors, *producer.connection.channel_errors) as error:
        raise OperationalError(str(error)) from error


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

    def ring(self, task: str, lane: str, *arguments: Any) -> bool:
        """Say that there is work: `hotrefresh.<task>` with ids as arguments, in the task's queue.

        Returns whether it was sent: where nobody listens and a window of wake-ups waits already, one more says nothing
        new, and it is left out. So a broker's memory is bounded by the window, not by how much work there is.

        Raises:
            UnreachableError: the broker does not answer. The work stands in the ledger all the same.
            UsageError: no such task.
        """
        queue = self.app.amqp.queues[broker_queue(queue_of(task))]
        try:
            with self.app.amqp.producer_pool.acquire(block=True) as producer, _library_errors(producer):
                if queue(producer.channel).queue_declare().message_count >= window_of(lane):
                    return False
                self.app.send_task(
                    f"hotrefresh.{task}",
                    args=list(arguments),
                    queue=queue.name,
                    priority=broker_priority(lane, self.url),
                    retry=False,
                    producer=producer,
                )
        except (OperationalError, OSError) as error:
            raise UnreachableError(
                f"the broker at {masked(self.url)} does not answer ({error}); the work is in the ledger and workers "
                "will find it. Start the broker, or correct HOTREFRESH_BROKER_URL."
            ) from error
        return True

    def close(self) -> None:
        """Give the connections back."""
        if self._app is not None:
            self._app.close()
            self._app = None
