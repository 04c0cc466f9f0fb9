"""Pages of a long list, by number."""

from __future__ import annotations

from dataclasses import dataclass

LAST = 100_000


def number_of(text: str | None) -> int:
    """The number of a page out of an address; whatever is none is the first."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 9:
        return 1
    return min(max(1, int(text)), LAST)


@dataclass(frozen=True)
class Page:
    """One page of a list.

    Attributes:
        number: from 1.
        size: rows a page.
        more: there are rows behind it.
        total: rows in all; None where they were not counted.
    """

    number: int
    size: int
    more: bool
    total: int | None = None

    @property
    def offset(self) -> int:
        """Rows before it."""
        return (self.number - 1) * self.size

    @property
    def previous(self) -> int | None:
        """The page before it."""
        return self.number - 1 if self.number > 1 else None

    @property
    def following(self) -> int | None:
        """The page behind it."""
        return self.number + 1 if self.more else None
