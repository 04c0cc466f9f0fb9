"""Reading one `[[throttle]]` or `[[gate]]` table: every mistake is one sentence that names the table, the key and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import UsageError

_REQUIRED = object()
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Fields:
    """The keys of one table, taken one by one; `finish` refuses what nobody took."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._table = dict(table)
        self._taken: dict[str, Any] = {}
        self.where = where

    @property
    def resolved(self) -> dict[str, Any]:
        """The keys taken, with their defaults, as JSON can hold them; what was left out for good is not named."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in self._taken.items()}
        return {key: value for key, value in values.items() if value not in (None, "")}

    def wrong(self, key: str, problem: str) -> UsageError:
        """The error for one key."""
        return UsageError(f"{self.where}: {key} {problem}.")

    def number(
        self, key: str, default: Any = _REQUIRED, *, above: float | None = None, most: float = math.inf
    ) -> float:
        """A finite number, greater than `above` and at most `most`."""
        value = self._take(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, f"is {value!r}; write a number")
        if (above is not None and value <= above) or value > most:
            bounds = [f"above {above:g}"] if above is not None else []
            bounds += [f"at most {most:g}"] if most < math.inf else []
            raise self.wrong(key, f"is {value!r}; write a number {' and '.join(bounds)}")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        """A whole number from 0."""
        value = self._take(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, f"is {value!r}; write a whole number from 0")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string that is not empty."""
        value = self._take(key, default, "a text")
        if not isinstance(value, str) or (not value.strip() and value != default):
            raise self.wrong(key, f"is {value!r}; write a text")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> str:
        """One of a few words."""
        value = self.text(key, default)
        if value not in choices:
            raise self.wrong(key, f"is {value!r}; write one of {', '.join(choices)}")
        return value

    def truth(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r}; write true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, not empty."""
        value = self._take(key, _REQUIRED, "a list of texts")
        if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, f"is {value!r}; write a list of texts")
        return tuple(value)

    def url(self, key: str) -> str:
        """An http or https URL without a user or password in it."""
        value = self.text(key)
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or any(character.isspace() for character in value):
            # The value itself is not repeated: it may be a database's URL, pasted here with its password.
            raise self.wrong(key, "is no http or https URL; write http://host:port/path")
        if "@" in parts.netloc:
            raise self.wrong(key, "holds a user or password; remove it, configuration keeps no secrets")
        return value

    def variable(self, key: str) -> str | None:
        """The name of an environment variable, or None when the key is absent."""
        value = self.text(key, "")
        if not value:
            return None
        if not _VARIABLE.fullmatch(value):
            # Not repeated, for the same reason.
            raise self.wrong(
                key, "is no name of an environment variable; put the URL in one and write its name"
            )
        return value

    def finish(self) -> None:
        """Refuse what nobody took."""
        unknown = sorted(map(str, self._table.keys() - self._taken.keys()))
        if unknown:
            raise self.wrong(repr(unknown[0]), f"is no key of this kind; it has {', '.join(self._taken)}")

    def _take(self, key: str, default: Any, what: str) -> Any:
        if key not in self._table and default is _REQUIRED:
            raise self.wrong(key, f"is missing; write {key} = {what}")
        self._taken[key] = self._table.get(key, default)
        return self._taken[key]
