"""Codes: unit vectors on a lattice, which is why they fit into a few bits a dimension.

A recurrent code of u loops is b = Σ_{j=0..u} 2^{-j} s_j with s_j ∈ {±1}^m (BEBR, arXiv 2302.08714). With the unsigned
number c ∈ {0..M}, M = 2^{u+1} − 1, whose top bit is s_0, 2^u·b = 2c − M: an odd integer a dimension, the *level*. What the
rest of hotrefresh sees is the level vector divided by its length, float32, so that certificates, flips and mixtures treat
a code as any other embedding; files and code indexes keep the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Packed = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int8]
Vectors = npt.NDArray[np.float32]

MOST_LOOPS = 3
# Levels are at most 15; a float32 quotient of two of them is off by far less than the 2 between neighbours.
_OFF_LATTICE = 1e-2


@dataclass(frozen=True)
class CodeShape:
    """What a code looks like.

    Attributes:
        width: m, dimensions of a code.
        loops: u, 0..3; a dimension takes u + 1 bits.
    """

    width: int
    loops: int

    def __post_init__(self) -> None:
        if not (self.width >= 1 and 0 <= self.loops <= MOST_LOOPS):
            raise ValueError(f"codes have a width from 1 and 0 to {MOST_LOOPS} loops, not {self}")

    @property
    def bits(self) -> int:
        """Bits a dimension: u + 1."""
        return self.loops + 1

    @property
    def top(self) -> int:
        """M, the greatest number of a dimension and the greatest level."""
        return int(2**self.bits - 1)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one bit of every dimension."""
        return -(-self.width // 8)

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed code."""
        return self.bits * self.plane_bytes

    def pack(self, codes: Codes) -> Packed:
        """(n, m) uint8, each ≤ M -> (n, row_bytes): the plane of the top bits first, dimension 0 in a byte's top bit.

        A prefix of whole planes is the code of fewer loops. Raises ValueError for numbers or shapes that do not fit.
        """
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != self.width:
            raise ValueError(f"{codes.dtype} {codes.shape} are no codes of {self}")
        if codes.size and int(codes.max()) > self.top:
            raise ValueError(f"a code of {self} is at most {self.top}, not {int(codes.max())}")
        planes = [np.packbits((codes >> bit) & 1, axis=1) for bit in range(self.loops, -1, -1)]
        return np.concatenate(planes, axis=1)

    def unpack(self, packed: Packed) -> Codes:
        """(n, row_bytes) uint8 -> (n, m) uint8. Raises ValueError for another shape."""
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != self.row_bytes:
            raise ValueError(f"{packed.dtype} {packed.shape} are no packed codes of {self}")
        planes = packed.reshape(len(packed), self.bits, self.plane_bytes)
        codes: Codes = np.zeros((len(packed), self.width), np.uint8)
        for place in range(self.bits):
            codes = np.bitwise_or(codes << 1, np.unpackbits(planes[:, place], axis=1, count=self.width))
        return codes

    def levels(self, codes: Codes) -> Levels:
        """(n, m) uint8 -> (n, m) int8, 2c − M: odd."""
        return (2 * codes.astype(np.int8) - np.int8(self.top)).astype(np.int8)

    def unit(self, codes: Codes) -> Vectors:
        """(n, m) uint8 -> (n, m) float32, L2-normalised: what is compared with other embeddings."""
        levels = self.levels(codes).astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", levels, levels))
        return np.asarray(levels / lengths[:, None], np.float32)

    def of_unit(self, vectors: Vectors) -> Codes:
        """What `unit` was made of: (n, m) float32 -> (n, m) uint8.

        Levels with a common odd factor (all ±3, say) have the same direction without it; the smallest are answered, and
        `unit` of them is the same vector.

        Raises ValueError where a vector is not a code's, such as one of zeros.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"{vectors.shape} are no unit vectors of {self}")
        least = np.abs(vectors).min(axis=1) if len(vectors) else np.zeros(0, np.float32)
        levels = np.zeros(vectors.shape, np.int8)
        open_ = np.arange(len(vectors))
        for factor in range(1, self.top + 1, 2):
            if not len(open_):
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                scaled = vectors[open_] * (factor / least[open_])[:, None]
            near = 2 * np.floor(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0) / 2) + 1
            fits = (np.abs(scaled - near) < _OFF_LATTICE).all(axis=1)
            fits &= (np.abs(near) <= self.top).all(axis=1)
            levels[open_[fits]] = near[fits]
            open_ = open_[~fits]
        if len(open_):
            raise ValueError(f"{len(open_)} of {len(vectors)} vectors are no codes of {self}")
        return ((levels.astype(np.int16) + self.top) // 2).astype(np.uint8)
