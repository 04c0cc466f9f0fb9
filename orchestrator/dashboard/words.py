"""How numbers, times and states are written on a page: with their unit, and with the exact value beside it for machines."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

THIN = "\u202f"  # a narrow space that does not break: between a number and its unit
MINUTE, HOUR, DAY = 60, 3600, 86_400
NOTHING = "–"


def figure(metric: str, value: float | int | None, text: str | None = None, **labels: object) -> Markup:
    """A number as people read it, with its exact value and its labels in attributes: `data-metric`, `data-value`.

    Args:
        metric: the name of the column it comes from.
        text: how it is written; the value itself unless given.
        labels: what it is about, such as model="new"; they become attributes data-model="new".
    """
    exact = "" if value is None else repr(float(value)) if isinstance(value, float) else str(value)
    about = Markup("").join(
        Markup(' data-{}="{}"').format(name, label) for name, label in labels.items() if label is not None
    )
    shown = NOTHING if value is None else text if text is not None else str(value)
    return Markup('<data value="{}" data-metric="{}" data-value="{}"{}>{}</data>').format(
        exact, metric, exact, about, shown
    )


def count(value: float | None) -> str:
    """1234567 → 1,234,567."""
    return NOTHING if value is None else f"{value:,.0f}"


def percent(ratio: float | None) -> str:
    """A ratio 0..1 with one decimal; nothing that is not all is called 100 %, nothing that is something 0 %."""
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    shown = ratio * 100
    if 0 < shown < 0.05:
        return f"<{THIN}0.1{THIN}%"
    if 99.95 <= shown < 100:
        return f"99.9{THIN}%"
    return f"{shown:.1f}{THIN}%"


def decimal(value: float | None, places: int = 3) -> str:
    """A score, a recall: a fixed number of decimals."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def general(value: float | None) -> str:
    """A value or limit of no known size, as the command writes it."""
    return NOTHING if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if 0 < seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole}{THIN}s"
    for unit, name, smaller, smaller_name in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "min"),
        (MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            large, rest = divmod(whole, unit)
            small = rest // smaller
            return f"{large}{THIN}{name}" + (f" {small}{THIN}{smaller_name}" if small else "")
    raise AssertionError("a minute or more has a unit")


def since(at: datetime, now: datetime) -> str:
    """How long ago: just now, 12 s ago, 3 min ago, 5 h ago, 2 d ago; or in 3 min."""
    seconds = (now - at).total_seconds()
    span = abs(seconds)
    if span < 2:
        return "just now"
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1, "s")):
        if span >= unit:
            text = f"{int(span // unit)}{THIN}{name}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    raise AssertionError("two seconds or more have a unit")


def moment(at: datetime | None, now: datetime) -> Markup:
    """A time, relative to now; the absolute one in UTC is in its title and its attribute."""
    if at is None:
        return escape(NOTHING)
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S} UTC", since(at, now)
    )


def instant(at: datetime | None) -> Markup:
    """A time, absolute in UTC."""
    if at is None:
        return escape(NOTHING)
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S} UTC")


# State → how much it asks for attention. A colour never says it alone: the word stands in it.
_TONES = {
    "finalizable": "good",
    "finalized": "good",
    "pass": "good",
    "certified": "good",
    "healed": "good",
    "positive": "good",
    "paused": "warn",
    "throttled": "warn",
    "no_worker": "warn",
    "inconclusive": "warn",
    "cancelling": "warn",
    "rolling_back": "warn",
    "failed": "bad",
    "fail": "bad",
    "refused": "bad",
    "negative": "bad",
    "open": "bad",
    "planned": "busy",
    "deployed": "busy",
    "backfilling": "busy",
    "active": "busy",
}


def pill(word: str, about: str | None = None, tone: str | None = None) -> Markup:
    """A state in its colour; underscores become spaces.

    Args:
        about: a metric's name, for machines.
        tone: instead of the word's own: good, warn, bad, busy or plain.
    """
    hook = Markup(' data-metric="{}" data-value="{}"').format(about, word) if about else Markup("")
    return Markup('<span class="pill {}"{}>{}</span>').format(
        tone or _TONES.get(word, "plain"), hook, word.replace("_", " ")
    )


def rate(per_s: float | None) -> str:
    """Items in a second: 12.5; from 100 on whole, 1,777."""
    if per_s is None or not math.isfinite(per_s):
        return NOTHING
    return f"{per_s:.1f}" if per_s < 99.95 else count(per_s)


def plain_json(value: Any) -> str:
    """A column of JSON in one line; what is null is left out."""
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None} or None
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def excerpt(text: str, limit: int = 280) -> str:
    """A text, cut at a word where it is too long."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return text[:limit].rsplit(" ", 1)[0] + " …"
