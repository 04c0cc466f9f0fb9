"""Exact nearest neighbours: of one vector a picture, and of many descriptors a picture."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.matching.local import F32, U8, WIDTH, Features

I64 = npt.NDArray[np.int64]

_BLOCK = 4096
_QUERIES_AT_ONCE = 16_384


def nearest_vectors(queries: F32, vectors: F32) -> tuple[I64, F32]:
    """(Q,) row of the vector with the highest inner product, and that product; ties by the lower row.

    Raises ValueError where there are no vectors or widths differ.
    """
    if not len(vectors) or queries.ndim != 2 or queries.shape[1:] != vectors.shape[1:]:
        raise ValueError(f"{queries.shape} queries cannot be compared with {vectors.shape} vectors")
    best = np.full(len(queries), -np.inf, np.float32)
    rows = np.zeros(len(queries), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        scores = queries @ vectors[start : start + _BLOCK].T
        here = scores.argmax(axis=1)
        score = scores[np.arange(len(queries)), here]
        better = score > best
        best[better], rows[better] = score[better], here[better] + start
    return rows, best


class LocalIndex:
    """All descriptors of all references, and whose they are; a query's descriptor gets its nearest one.

    Descriptors are bytes and are kept as bytes: half of what float16 takes, and squared distances are exact. On a GPU,
    where faiss has no such index, they lie in float16, which holds bytes exactly as well, divided over all GPUs there are.
    References with fewer than 10 points take no part.

    Attributes:
        keys: of the references, as their numbers count them.

    Raises:
        UsageError: faiss is not installed.
    """

    def __init__(self, references: Mapping[str, Features]) -> None:
        used = {key: features for key, features in references.items() if features.usable}
        self.keys = list(used)
        self._owners = np.repeat(np.arange(len(used)), [len(features) for features in used.values()])
        self._index = _flat_index()
        for features in used.values():
            self._index.add(features.descriptors.astype(np.float32))

    def __len__(self) -> int:
        return len(self._owners)

    def nearest(self, descriptors: U8) -> tuple[I64, F32]:
        """(n,) the number of the reference that holds the nearest descriptor of each, and the squared distance to it.

        Of two at the same distance either may be named. Empty where the index or the query is.
        """
        if not len(self) or not len(descriptors):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        owners, distances = [], []
        for start in range(0, len(descriptors), _QUERIES_AT_ONCE):
            block = descriptors[start : start + _QUERIES_AT_ONCE].astype(np.float32)
            found_distances, rows = self._index.search(block, 1)
            owners.append(self._owners[rows[:, 0]])
            distances.append(found_distances[:, 0])
        return np.concatenate(owners), np.concatenate(distances)


def _flat_index() -> Any:
    faiss = _faiss()
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        options = faiss.GpuMultipleClonerOptions()
        options.shard, options.useFloat16 = True, True
        return faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(WIDTH), co=options)
    return faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as missing:
        raise UsageError(
            "faiss is not installed: pip install 'hotrefresh[cpu]' (or 'hotrefresh[gpu]' on a CUDA machine, never both)."
        ) from missing
    return faiss  # type: ignore[no-any-return]
