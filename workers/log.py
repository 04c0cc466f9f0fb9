"""JSON log lines: one event in the past tense, its keywords, nothing secret."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from datetime import UTC, datetime
from typing import Any


def log(event: str, *, level: str = "info", exc_info: bool = False, **keywords: Any) -> None:
    """Write one line on stderr: ts, level, event and the keywords given."""
    line = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "event": event,
        **keywords,
    }
    if exc_info:
        line["trace"] = traceback.format_exc(limit=20)
    with contextlib.suppress(OSError, ValueError):  # a full or closed log must not stop the work
        sys.stderr.write(json.dumps(line, default=str) + "\n")
        sys.stderr.flush()
