"""What a row of extents is as bytes: float32, or a packed code. Whoever writes and reads sees vectors either way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.codecs.codes import CodeShape

Vectors = npt.NDArray[np.float32]

VECTOR_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class RowFormat:
    """Rows of `dim` numbers.

    Attributes:
        codes: the shape of the codes that the rows are kept as; None: they are floats.
    """

    dim: int
    codes: CodeShape | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dim * VECTOR_DTYPE.itemsize if self.codes is None else self.codes.row_bytes

    @property
    def ending(self) -> str:
        """Of the names of files that hold such rows."""
        return "f32" if self.codes is None else "bits"

    def to_bytes(self, vectors: Vectors) -> memoryview:
        """(n, dim) float32 as bytes. Of codes, n unit vectors on the lattice; see `CodeShape.of_unit`.

        A row of zeros stands for a vector that is not there: the ledger names these places, and nobody looks at what they
        are read as. As a code it is all bits 0.

        Raises:
            ValueError: another type or shape, or a vector that is no code's.
        """
        if vectors.dtype != VECTOR_DTYPE or vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"{vectors.dtype} {vectors.shape} does not fit rows of {self.dim} float32")
        if self.codes is None:
            return np.ascontiguousarray(vectors).data.cast("B")
        packed = np.zeros((len(vectors), self.codes.row_bytes), np.uint8)
        there = vectors.any(axis=1)
        packed[there] = self.codes.pack(self.codes.of_unit(vectors[there]))
        return packed.data.cast("B")

    def from_bytes(self, data: bytes | memoryview) -> Vectors:
        """What `to_bytes` was given: (n, dim) float32, the caller's to change."""
        if self.codes is None:
            vectors = np.frombuffer(data, VECTOR_DTYPE).reshape(-1, self.dim)
            return vectors if vectors.flags.writeable else vectors.copy()
        packed = np.frombuffer(data, np.uint8).reshape(-1, self.codes.row_bytes)
        return self.codes.unit(self.codes.unpack(packed))
