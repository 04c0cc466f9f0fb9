"""The doctor's look at the broker's settings: each of them was measured, and each fails silently when it is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.broker import (
    LONGEST_TASK_S,
    MOST_PRIORITY,
    QUEUES,
    broker_queue,
    is_rabbitmq,
    settings_for,
)

if TYPE_CHECKING:
    from orchestrator.broker import Application

POOLS = ("threads", "solo")
"""Pools in which CUDA works and a killed process leaves no message behind."""


def check_settings(app: Application) -> list[str]:
    """One sentence for each setting that is off, with the value it has and the one it should have; empty: all is well."""
    url = str(app.conf.broker_url)
    wanted = settings_for(url)
    options: dict[str, Any] = wanted.pop("broker_transport_options")
    pool = wanted.pop("worker_pool")
    found = [_difference(name, app.conf.get(name), value) for name, value in wanted.items()]
    if app.conf.worker_pool not in POOLS:
        found.append(_off("worker_pool", app.conf.worker_pool, f"{pool!r} or 'solo'"))
    given = dict(app.conf.broker_transport_options or {})
    found += [_option(name, given.get(name), value) for name, value in options.items()]
    return [sentence for sentence in (*found, *_queues(app, url)) if sentence]


def _option(name: str, has: Any, value: Any) -> str:
    """Of the visibility only the lower bound counts: it may be longer than ours, never shorter than a task."""
    if name == "visibility_timeout":
        enough = isinstance(has, int | float) and has > LONGEST_TASK_S
        return "" if enough else _off(name, has, f"more than the longest task, {LONGEST_TASK_S} s")
    return _difference(name, has, value)


def _queues(app: Application, url: str) -> list[str]:
    """Queues that are missing or too many, and in RabbitMQ those without priorities."""
    declared = {queue.name: queue for queue in app.conf.task_queues or ()}
    wanted = {broker_queue(queue) for queue in QUEUES}
    if set(declared) != wanted:
        return [_off("task_queues", sorted(declared), repr(sorted(wanted)))]
    if not is_rabbitmq(url):
        return []
    return [
        _off(f"x-max-priority of {name}", queue.max_priority, repr(MOST_PRIORITY))
        for name, queue in declared.items()
        if queue.max_priority != MOST_PRIORITY
    ]


def _difference(name: str, has: Any, value: Any) -> str:
    if isinstance(value, list) and isinstance(has, tuple | set | frozenset):  # Celery keeps some lists so
        has = sorted(has)
    return "" if (type(has), has) == (type(value), value) else _off(name, has, repr(value))


def _off(name: str, has: Any, should: str) -> str:
    return f"{name} is {has!r} and should be {should}"
