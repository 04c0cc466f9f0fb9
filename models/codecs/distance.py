"""Exact distances of codes, in integers: what every faster index of codes has to answer.

With c ∈ {0..M} the number of a dimension and s_j ∈ {±1} its planes:

    4^u <b^q, b^d> = 4 Σ c^q c^d − 2M (Σ c^q + Σ c^d) + m M²                         (1)  `dot_integer`
                   = 4^u Σ_{j,k} 2^{−(j+k)} (m − 2 ham(s_j^q, s_k^d))                (2)  `dot_planes`, the oracle of (1)
    cos = <b^q, b^d> / (||b^q|| ||b^d||),    4^u ||b||² = Σ (2c − M)²                     `norm_squared`

Register tables (after BEBR, whose own lay-out is not known here): a code is cut into groups of 4 bits, that is of
g = ⌊4 / (u + 1)⌋ dimensions: 4, 2, 1 and 1 for u = 0 to 3. A query has a table of 16 partial dot products T for each
group. As a product of two levels is odd, T has the parity of g, as its bound g M² has: (T + g M²) / 2 is an integer from
0 to g M² ≤ 225, one byte: (T + 18) / 2 for u = 1, (T + 225) / 2 for u = 3. Then

    4^u <b^q, b^d> = 2 Σ_groups stored − groups · g M² − filled · M²

where `filled` counts the dimensions that fill up the last group; they are number 0 on both sides, a product of M² each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.codecs.codes import Codes, CodeShape, Packed

Dots = npt.NDArray[np.int64]
Groups = npt.NDArray[np.uint8]
Tables = npt.NDArray[np.uint8]

GROUP_BITS = 4


def dot_integer(shape: CodeShape, queries: Codes, gallery: Codes) -> Dots:
    """4^u <b^q, b^d> by (1): (q, m) and (n, m) uint8 -> (q, n) int64."""
    top, width = shape.top, shape.width
    # In float32 for the fast matrix product. Exact: all partial sums are integers up to m M², below 2^24 for m ≤ 2^16.
    first, second = queries.astype(np.float32), gallery.astype(np.float32)
    products: Dots = (first @ second.T).astype(np.int64)
    sums = queries.sum(axis=1, dtype=np.int64)[:, None] + gallery.sum(axis=1, dtype=np.int64)[None, :]
    dots: Dots = 4 * products - 2 * top * sums + width * top * top
    return dots


def dot_planes(shape: CodeShape, queries: Packed, gallery: Packed) -> Dots:
    """4^u <b^q, b^d> by (2), from Hamming distances of planes: (q, row_bytes) and (n, row_bytes) uint8 -> (q, n) int64."""
    first, second = (side.reshape(len(side), shape.bits, shape.plane_bytes) for side in (queries, gallery))
    found = np.zeros((len(queries), len(gallery)), np.int64)
    for j in range(shape.bits):
        for k in range(shape.bits):
            differing = np.bitwise_count(first[:, None, j] ^ second[None, :, k]).sum(axis=2, dtype=np.int64)
            found += (shape.width - 2 * differing) << (2 * shape.loops - j - k)
    return found


def norm_squared(shape: CodeShape, codes: Codes) -> Dots:
    """4^u ||b||²: (n, m) uint8 -> (n,) int64, from m to m M²."""
    squared: Dots = np.square(shape.levels(codes), dtype=np.int64).sum(axis=1)
    return squared


def cosine(shape: CodeShape, queries: Codes, gallery: Codes) -> npt.NDArray[np.float64]:
    """(q, m) and (n, m) uint8 -> (q, n) float64."""
    norms = np.sqrt(np.outer(norm_squared(shape, queries), norm_squared(shape, gallery)))
    return dot_integer(shape, queries, gallery) / norms


def group_size(shape: CodeShape) -> int:
    """g: dimensions of a group of 4 bits."""
    return GROUP_BITS // shape.bits


def groups(shape: CodeShape, codes: Codes) -> Groups:
    """(n, m) uint8 -> (n, ⌈m/g⌉) uint8 below 16: a group's first dimension in its top bits."""
    found: Groups = np.zeros((len(codes), -(-shape.width // group_size(shape))), np.uint8)
    for member in _members(shape, codes):
        found = np.bitwise_or(found << shape.bits, member)
    return found


def tables(shape: CodeShape, queries: Codes) -> Tables:
    """(q, m) uint8 -> (q, ⌈m/g⌉, 16) uint8: stored partial dot products with every value of a group; see the module.

    Values that no group has (u = 2 has 8 of 16) are 0.
    """
    size, top = group_size(shape), shape.top
    known = np.arange(2 ** (size * shape.bits))
    partial = np.zeros((len(queries), -(-shape.width // size), len(known)), np.int64)
    for place, member in enumerate(_members(shape, queries)):
        numbers = known >> (shape.bits * (size - 1 - place)) & top
        partial += (2 * member.astype(np.int64) - top)[:, :, None] * (2 * numbers - top)
    stored = np.zeros((*partial.shape[:2], 2**GROUP_BITS), np.uint8)
    stored[:, :, : len(known)] = (partial + size * top * top) // 2
    return stored


def dot_tables(shape: CodeShape, stored: Tables, grouped: Groups) -> Dots:
    """4^u <b^q, b^d> by looking up: tables (q, G, 16) and groups (n, G), both uint8 -> (q, n) int64."""
    count = grouped.shape[1]
    size, square = group_size(shape), shape.top * shape.top
    places = grouped.astype(np.int64) + 2**GROUP_BITS * np.arange(count)
    found: Dots = np.zeros((len(stored), len(grouped)), np.int64)
    for row, table in enumerate(stored):
        found[row] = 2 * np.take(table.ravel(), places).sum(axis=1, dtype=np.int64)
    found -= (2 * count * size - shape.width) * square  # the offset of each group, and what fills up the last
    return found


def search(shape: CodeShape, queries: Codes, gallery: Codes, k: int) -> npt.NDArray[np.int64]:
    """The k nearest rows of each query, best first: (q, m) and (n, m) uint8 -> (q, min(k, n)) int64.

    By looking up in tables, ordered by cosine; of equal ones, the lower row first.
    """
    dots = dot_tables(shape, tables(shape, queries), groups(shape, gallery))
    # A query's own length does not change its order.
    scores = dots / np.sqrt(norm_squared(shape, gallery))
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _members(shape: CodeShape, codes: Codes) -> list[Codes]:
    """g arrays (n, ⌈m/g⌉): the first dimension of every group, the second …; number 0 where the last group is filled up."""
    size = group_size(shape)
    filled = np.pad(codes, ((0, 0), (0, -shape.width % size)))
    return [filled[:, place::size] for place in range(size)]
