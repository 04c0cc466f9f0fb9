"""JSON log lines as the workers write them, for our own events and for what uvicorn has to say."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


def log(event: str, *, level: str = "info", **keywords: Any) -> None:
    """Write one line on stderr: ts, level, event and the keywords given."""
    line = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "event": event,
        **keywords,
    }
    with contextlib.suppress(OSError, ValueError):  # a full or closed log must not stop the work
        sys.stderr.write(json.dumps(line, default=str) + "\n")
        sys.stderr.flush()


class JsonLines(logging.Handler):
    """What a library logs, as lines of the same kind; the trace of an error is in the log and nowhere else."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        keywords = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            keywords["trace"] = logging.Formatter().formatException(record.exc_info)
        log("server.said", level=record.levelname.lower(), **keywords)


def use_json_lines() -> None:
    """Let uvicorn's warnings and errors out as JSON lines."""
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.addHandler(JsonLines())
    uvicorn.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").propagate = True
