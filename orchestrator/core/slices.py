"""Slices: the queries that share a value of an attribute, such as a tenant or a language.

A mean hides who pays for a refresh. Slices are named `attribute=value`. Values that few queries have say nothing by
themselves and would be many, so those below `LEAST` queries, and those behind the `MOST` largest of an attribute, share one
slice `attribute=(other)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

LEAST = 10
MOST = 50
OTHER = "(other)"


def slices_of(attributes: Sequence[Mapping[str, str]], counted: I64) -> dict[str, I64]:
    """The queries of each slice, (m,) int64, rising; no slice is empty.

    Args:
        attributes: of each query, in their order; a query without an attribute is in none of its slices.
        counted: (n,) int64, the queries that count: those with a relevant item.
    """
    members: dict[str, list[int]] = {}
    for attribute in sorted({name for query in counted for name in attributes[query]}):
        sizes = Counter(attributes[query][attribute] for query in counted if attribute in attributes[query])
        # Of equally many queries by name: the same slices in every process.
        largest = sorted(sizes, key=lambda value: (-sizes[value], value))[:MOST]
        kept = {value for value in largest if sizes[value] >= LEAST}
        for query in counted:
            value = attributes[query].get(attribute)
            if value is not None:
                name = f"{attribute}={value if value in kept else OTHER}"
                members.setdefault(name, []).append(int(query))
    return {name: np.array(queries, np.int64) for name, queries in members.items()}
