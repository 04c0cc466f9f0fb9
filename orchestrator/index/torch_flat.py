"""One matrix on the GPU where there is one, searched block by block: exact, equal scores by the lower row."""

from __future__ import annotations

import numpy as np
import torch

from orchestrator.errors import UsageError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.rows import last_of_each, padded

# Scores looked at together: 64 MiB of float32, and at most three times that while ties are sorted out.
QUERY_BLOCK = 256
GALLERY_BLOCK = 65_536
# Late rows come a batch at a time: each growth makes room for an eighth more, so that copies stay rare.
_SPARE = 8
# A product of fewer rows takes another kernel, whose sums differ in the last bit: fewer queries are padded up.
_SMALLEST_SIDE = 16
_EMPTY = 2**63 - 1


class TorchFlat:
    """A float32 matrix on one device. Searches hold two blocks of scores beside it, whatever the sizes are."""

    exact = True

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        asked = (options or IndexOptions()).device
        self._device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
        )
        self.dim = vectors.shape[1]
        self._n = len(vectors)
        # Always a copy: the caller's matrix stays the caller's.
        self._matrix = torch.tensor(np.asarray(vectors, np.float32), device=self._device)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        each, last = last_of_each(rows, vectors)  # twice the same row: index_copy_ would take any of them
        if len(each):
            if each[0] < 0 or each[-1] >= self._n:
                raise IndexError(f"row {each[0] if each[0] < 0 else each[-1]} of {self._n}")
            self._matrix.index_copy_(
                0, torch.from_numpy(each).to(self._device), torch.from_numpy(last).to(self._device)
            )
            self._settle()

    def grow(self, n: int) -> None:
        if n > len(self._matrix):
            larger = torch.zeros((n + n // _SPARE, self.dim), device=self._device)
            larger[: self._n] = self._matrix[: self._n]
            self._matrix = larger
            self._settle()
        self._n = max(self._n, n)

    def _settle(self) -> None:
        """A write is over when it returns: searches run on streams of their own threads."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        if self._device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
            raise UsageError(
                "float32 products are shortened here (TF32), so the index would not be exact: call "
                "torch.set_float32_matmul_precision('highest')."
            )
        mask = None if allowed is None else torch.from_numpy(np.ascontiguousarray(allowed)).to(self._device)
        asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
        parts = [
            self._best(asked[at : at + QUERY_BLOCK], min(k, self._n), mask)
            for at in range(0, len(asked), QUERY_BLOCK)
        ]
        best = torch.cat(parts).cpu() if parts else torch.zeros((0, 0), dtype=torch.int64)
        found = (best != _EMPTY).numpy()
        scores = np.where(found, _scores_of(best).numpy(), np.float32(-np.inf))
        rows = np.where(found, (best & 0xFFFFFFFF).numpy(), -1)
        return padded(scores, rows, k)

    def _best(self, queries: torch.Tensor, k: int, mask: torch.Tensor | None) -> torch.Tensor:
        """The keys of the k best of some queries, rising: (m, k) int64."""
        m = len(queries)
        some = torch.zeros((max(m, _SMALLEST_SIDE), self.dim), device=self._device)
        some[:m] = queries.to(self._device)
        best = torch.full((m, k), _EMPTY, dtype=torch.int64, device=self._device)
        for start in range(0, self._n, GALLERY_BLOCK):
            stop = min(self._n, start + GALLERY_BLOCK)
            scores = (some @ self._matrix[start:stop].T)[:m]
            if mask is not None:
                scores.masked_fill_(~mask[start:stop], -torch.inf)
            both = torch.cat([best, _keys_of_best(scores, start, k)], dim=1)
            best = both.topk(k, dim=1, largest=False, sorted=True).values
        return best

    def vectors(self) -> Vectors:
        held: Vectors = self._matrix[: self._n].cpu().numpy()
        return held

    def read(self, rows: Rows) -> Vectors:
        held: Vectors = self._matrix[torch.from_numpy(rows).to(self._device)].cpu().numpy()
        return held

    def close(self) -> None:
        self._matrix = torch.zeros((0, self.dim))
        self._n = 0


def _keys_of_best(scores: torch.Tensor, first: int, k: int) -> torch.Tensor:
    """The keys of the k best scores of each line, in any order; -inf stands for nothing.

    Which of several equal scores `topk` takes is left to chance: lines with more of them at the edge than there is room
    for are sorted by score and row together.
    """
    k = min(k, scores.shape[1])
    values, places = scores.topk(k, dim=1)
    found = _pack(values, places + first)
    edge = values[:, -1:]
    crowded = ((scores >= edge).sum(dim=1) > k) & (edge[:, 0] > -torch.inf)
    rows = torch.arange(first, first + scores.shape[1], device=scores.device)
    lines = crowded.nonzero()[:, 0]
    for at in range(0, len(lines), QUERY_BLOCK // 4):  # two integers of 8 bytes a score: fewer lines at once
        part = lines[at : at + QUERY_BLOCK // 4]
        found[part] = _pack(scores[part], rows).topk(k, dim=1, largest=False).values
    return found


def _pack(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Keys that rise as scores fall and, among equal scores, as rows rise: `core.keys` with a sign, for torch's int64."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    falling = ~torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    packed = (falling.to(torch.int64) << 32) | rows
    return torch.where(torch.isneginf(scores), _EMPTY, packed)


def _scores_of(keys: torch.Tensor) -> torch.Tensor:
    bits = ~(keys >> 32).to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
