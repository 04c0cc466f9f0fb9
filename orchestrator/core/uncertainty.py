"""How unsure a set of prototypes is about each embedding: three statistics of one softmax, in one fused pass.

With `P = softmax(f . w_c / T)` over C prototypes, P(1) and P(2) its two largest entries (METHODS.md, "Backfill orders"):

- least confidence: `1 - P(1)`
- margin: `1 - (P(1) - P(2))`
- entropy: `-sum_c P_c log P_c / log C`

All three lie in 0..1 and grow with uncertainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]

DEFAULT_TEMPERATURE = 0.05
"""T of the softmax over cosine similarities."""

_CHUNK_ROWS = 512
_SCRATCH_BYTES = 24 * 2**20


@dataclass(frozen=True)
class Uncertainty:
    """(n,) float32 each, 0 (sure) .. 1 (unsure)."""

    least_confidence: F32
    margin: F32
    entropy: F32


def uncertainty(embeddings: F32, prototypes: F32, temperature: float = DEFAULT_TEMPERATURE) -> Uncertainty:
    """The three statistics of every embedding.

    Args:
        embeddings: (n, d) float32, L2-normalised; a memory map is read chunk by chunk.
        prototypes: (C, d) float32, L2-normalised, C >= 2.
        temperature: T > 0.

    Scratch: under 32 MB beside the results and one scaled copy of the prototypes, as long as C < 3e6.
    Raises ValueError for fewer than two prototypes, other dimensions, or T <= 0.
    """
    _check(embeddings, prototypes, temperature)
    n, C = len(embeddings), len(prototypes)
    results = torch.empty(3, n)
    scaled = (torch.from_numpy(np.ascontiguousarray(prototypes, np.float32)) / temperature).T.contiguous()
    rows = max(1, min(_CHUNK_ROWS, n, _SCRATCH_BYTES // (2 * 4 * C)))
    scratch = torch.empty(2, rows, C)
    for at in range(0, n, rows):
        chunk = torch.from_numpy(np.ascontiguousarray(embeddings[at : at + rows], np.float32))
        logits, weights = scratch[0, : len(chunk)], scratch[1, : len(chunk)]
        torch.mm(chunk, scaled, out=logits)
        _statistics(logits, weights, results[:, at : at + len(chunk)])
    least, margin, entropy = results.numpy()
    return Uncertainty(least, margin, entropy)


def _statistics(logits: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """Overwrites both (rows, C) buffers; writes (3, rows) statistics.

    With x_c = exp(l_c - max l) and the largest entry taken out (x = 1 there), `rest = sum x` keeps full precision where
    the softmax is nearly one-hot, which is where `1 - P(1)` by subtraction would not.
    """
    largest, where = logits.max(dim=1, keepdim=True)
    logits -= largest
    torch.exp(logits, out=weights)
    weights.scatter_(1, where, 0.0)
    second = weights.amax(dim=1)
    rest = weights.sum(dim=1)
    total = 1 + rest
    # The largest entry adds 0 to sum x log x, so it may stay out.
    expected = weights.mul_(logits).sum(dim=1)
    out[0] = rest / total
    out[1] = (rest + second) / total
    out[2] = ((torch.log1p(rest) - expected / total) / math.log(logits.shape[1])).clamp_(0.0, 1.0)


def _check(embeddings: F32, prototypes: F32, temperature: float) -> None:
    if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"embeddings {embeddings.shape} and prototypes {prototypes.shape} must be (n, d) and (C, d)"
        )
    if len(prototypes) < 2:
        raise ValueError(f"uncertainty needs at least two prototypes, not {len(prototypes)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
