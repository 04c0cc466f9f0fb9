"""`hours`: the windows of the day in which workers may work, by the wall clock of a time zone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from orchestrator.table_fields import Fields
from orchestrator.throttles.base import Surroundings

KIND = "hours"
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]|24):([0-5]\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Window:
    """From `start` up to, not including, `end`: minutes of the day; over midnight where `end` is not after `start`."""

    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether that minute of the day is inside."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


class Hours:
    """Seconds until a window opens, 0 inside one: the limit is 0.

    The wall clock decides, so a change to or from summer time moves nothing: a window that begins in the hour that is
    skipped opens when that hour would have begun, and the hour that comes twice is inside or outside both times.
    """

    def __init__(self, windows: Sequence[Window], zone: ZoneInfo) -> None:
        self._windows = tuple(windows)
        self._zone = zone

    def read(self, surroundings: Surroundings) -> float | None:
        """Seconds until the next window opens."""
        now = surroundings.now.astimezone(UTC)
        if self._open(now):
            return 0.0
        # Windows begin, and clocks change, on whole minutes: looking at each of them is exact, and takes 3 ms at most.
        minute = now.replace(second=0, microsecond=0)
        for _ in range(3 * _DAY_MINUTES):
            minute += timedelta(minutes=1)
            if self._open(minute):
                break
        return (minute - now).total_seconds()

    def _open(self, moment: datetime) -> bool:
        local = moment.astimezone(self._zone)
        minute = local.hour * 60 + local.minute
        return any(window.holds(minute) for window in self._windows)


def build(fields: Fields, limit: float) -> Hours:
    """The probe of one table: `allow` (list of HH:MM-HH:MM) and `tz` (a name such as Europe/Berlin)."""
    windows = [_window(fields, text) for text in fields.texts("allow")]
    name = fields.text("tz")
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise fields.wrong("tz", f"is {name!r}; write a time zone such as Europe/Berlin or UTC") from None
    return Hours(windows, zone)


def _window(fields: Fields, text: str) -> Window:
    found = _WINDOW.fullmatch(text)
    hour, minute, end_hour, end_minute = map(int, found.groups()) if found else (0, 0, 0, 0)
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if not found or start == end or end > _DAY_MINUTES:
        raise fields.wrong("allow", f'holds {text!r}; write windows such as "22:00-06:00"')
    return Window(start, end)


LIMIT_MOST = None  # the limit is not configured
EXAMPLE = {"kind": KIND, "allow": ["22:00-06:00"], "tz": "Europe/Berlin"}
