"""Codes and floats of one model in one search: the direct sum of both spaces.

While stored floats become codes, a gallery holds rows of either kind. A row is laid out as [code | float] with zeros where it
has nothing, a query has both parts, so that one inner product compares a row with the query in the row's own space. Both
parts of a query are unit vectors: a score is a cosine, whichever kind the row is of.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def joint_queries(codes: Vectors, floats: Vectors) -> Vectors:
    """Queries (q, m) as codes and (q, n) as floats, both unit vectors -> (q, m + n) float32."""
    return np.concatenate([codes, floats], axis=1, dtype=np.float32)


def joint_codes(codes: Vectors, n: int) -> Vectors:
    """Rows (r, m) that are codes, beside n dimensions of floats -> (r, m + n) float32."""
    return np.pad(codes, ((0, 0), (0, n))).astype(np.float32, copy=False)


def joint_floats(floats: Vectors, m: int) -> Vectors:
    """Rows (r, n) that are floats, beside m dimensions of codes -> (r, m + n) float32."""
    return np.pad(floats, ((0, 0), (m, 0))).astype(np.float32, copy=False)
