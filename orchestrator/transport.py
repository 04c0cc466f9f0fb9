"""kombu's Redis transport, with one difference: what is no message is dropped, where kombu's ends the worker's process.

A single garbled entry in the queue (another program's, a half-written one) would otherwise end one worker after the other.
Nothing is lost by dropping it: a wake-up is only a hint, the work stands in the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis
from redis.exceptions import DataError

# What decoding and unpacking something that is no message can raise; faults of the connection are not among them.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DataError)

_logger = logging.getLogger("hotrefresh.broker")


class Channel(kombu_redis.Channel):
    """Reads the queue; by now an entry is out of the list, so dropping it is all there is to do."""

    def _brpop_read(self, **options: Any) -> Any:
        return _read_or_drop(lambda: super(Channel, self)._brpop_read(**options))  # type: ignore[no-untyped-call]

    def _get(self, queue: Any, timeout: Any = None) -> Any:
        found = _read_or_drop(lambda: super(Channel, self)._get(queue))  # type: ignore[no-untyped-call]
        if not isinstance(found, dict) or not isinstance(found.get("properties"), dict):
            raise Empty
        return found


def _read_or_drop(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except _UNREADABLE as error:
        # Its content is not shown: whoever wrote it would write into our log.
        _logger.warning("dropped an entry of the queue that is no message (%s)", type(error).__name__)
        return True


class Transport(kombu_redis.Transport):
    """The transport that `make_app` names for Redis and Valkey."""

    Channel = Channel
