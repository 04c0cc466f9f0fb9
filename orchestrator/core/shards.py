"""Which rows a shard holds when a gallery is divided over several servers.

Rows are dealt out in blocks, one after the other: block b, the rows [b·size, (b+1)·size), is shard (b mod n)'s. Whose a row is
depends on its number alone: nothing is agreed upon, and nothing moves when a gallery grows. A shard counts its own rows from 0,
in the order that they have in the gallery, so that ties among them fall as they would in the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`, in blocks of `block` rows.

    Raises ValueError where these are no such numbers.
    """

    number: int = 1
    count: int = 1
    block: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count or self.block < 1:
            raise ValueError(
                f"there is no shard {self.number} of {self.count} in blocks of {self.block} rows"
            )

    @classmethod
    def parse(cls, text: str, block: int = BLOCK_ROWS) -> Shard:
        """Out of a text such as 2/3.

        Raises ValueError where it is none.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
            raise ValueError(f"{text!r} is no shard; write 2/3 for the second of three")
        return cls(int(number), int(count), block)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def whole(self) -> bool:
        """Whether every row is held."""
        return self.count == 1

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """(m,) bool: which of the gallery's rows (m,) are this shard's."""
        held: npt.NDArray[np.bool_] = rows // self.block % self.count == self.number - 1
        return held

    def size(self, n: int) -> int:
        """How many of a gallery's first `n` rows are this shard's."""
        rounds, rest = divmod(n, self.block * self.count)
        return rounds * self.block + min(self.block, max(0, rest - (self.number - 1) * self.block))

    def own(self, rows: Rows) -> Rows:
        """The gallery's rows (m,) that are this shard's, as it counts them; the others are left out."""
        if self.whole:
            return rows
        held = rows[self.holds(rows)]
        own: Rows = held // (self.block * self.count) * self.block + held % self.block
        return own

    def rows(self, own: Rows) -> Rows:
        """The shard's rows, of any shape, as the gallery counts them; negative ones stay as they are."""
        if self.whole:
            return own
        blocks = own // self.block * self.count + self.number - 1
        return np.where(own < 0, own, blocks * self.block + own % self.block)

    def slices(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Of a gallery's first `n` rows those that are this shard's, in ranges: as it counts them, and as the gallery does."""
        if self.whole:
            yield slice(0, n), slice(0, n)
            return
        for at, first in enumerate(range((self.number - 1) * self.block, n, self.block * self.count)):
            last = min(n, first + self.block)
            yield slice(at * self.block, at * self.block + last - first), slice(first, last)


WHOLE = Shard()
