"""Mixed-version indexes: one file a backend behind one protocol, registered here by name."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UsageError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class VectorIndex(Protocol):
    """Vectors by dense row, searched by inner product. Not safe for a write beside reads: the replica's lock is."""

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Overwrite rows (m,) with vectors (m, dim)."""

    def grow(self, n: int) -> None:
        """Hold `n` rows; the new ones are zero until they are replaced."""

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """The k best by inner product: scores (q, k) falling and rows (q, k); -1 where there are fewer.

        `allowed`: (n,) bool, the rows that may be answered; None: all.
        """

    def vectors(self) -> Vectors:
        """All vectors as they stand, (n, dim), not to be written."""

    def close(self) -> None:
        """Give back what it holds outside this process; nothing is called after it."""


BACKENDS = {
    "faiss-flat": ("orchestrator.index.faiss_flat:FaissFlat", "FAISS exact inner product, in this process"),
}


def make_index(name: str, vectors: Vectors) -> VectorIndex:
    """A backend by name, holding `vectors`; loaded only when it is asked for."""
    if name not in BACKENDS:
        raise UsageError(f"there is no index backend {name!r}; there are {', '.join(BACKENDS)}.")
    module, kind = BACKENDS[name][0].split(":")
    made: VectorIndex = getattr(import_module(module), kind)(vectors)
    return made
