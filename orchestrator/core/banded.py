"""The plan of the float32 uncertainties, from bfloat16 ones and an exact look at the rows that bfloat16 leaves in doubt.

A plan is cut into segments: batches, or bands of priority. It is the same plan where every segment holds the same rows.

1. Score all rows in bfloat16, which costs a fraction, and bound each row's error.
2. The bounds give each row the best and the worst rank it can have. A row whose ranks straddle no cut is settled.
3. Score the others, the band, exactly in float32, and deal them out: segment after segment takes as many as it lacks, in
   their exact order.

Why that is exact: a settled row lies in its segment whatever the float32 scores are within the bounds. So it is known how
many rows each segment lacks, the band's rows fill those places, and a row with a larger score never lies in a later one.

The bound. Let f be an embedding, w a prototype, f' = f1 + f2 + r_f its parts in bfloat16 and what is left, and the same for
w. One term computes f1 . w1, three compute f1 . w1 + f1 . w2 + f2 . w1, both summed in float32. By Cauchy and Schwarz, with
the norms of the parts as measured, the similarity is off by at most

    one term      |f - f1| |w| + |f1| |w - w1|
    three terms   |f2| |w2| + |r_f| |w| + |f1 + f2| |r_w|

to which rounding adds (k + 8) u |f| |w| for each of the two computations, a sum of k products, u = 2^-24 (tensor cores cut
where others round: twice that). Divided by T this is `delta`, a bound for every logit of the row. A sum of C positive terms
is off by the factor exp((C + 64) u) in each. Then (x, `rest` … as in `moments`):

- `rest` is the least, over m, of the sums of exp(l_c - l_m), and `second` a quotient of two exponentials: both are known
  within a factor exp(2 delta) and the sums' own. Least confidence rest / (1 + rest) and margin (rest + second) /
  (1 + rest) grow with both, as second <= 1: put in both ends.
- Along the straight way between the two logit vectors the standard deviation s of the logits under their own softmax obeys
  |s'| <= delta (s + 1), and the entropy |H'| <= delta E|l - E l| <= delta s. So H is off by at most
  delta ((s + 1) exp(delta) - 1), its sums by (C + 64) u (1 + 2 |E (l - max l)|) in each; both are divided by log C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.core.plan import order_rows
from orchestrator.core.uncertainty import (
    DEFAULT_TEMPERATURE,
    bring,
    check,
    chunk_rows,
    fused,
    scan,
    statistics,
    uncertainty,
)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

STATISTICS = ("least_confidence", "margin", "entropy")
_UNIT = 2.0**-24
_TINY = 2.0**-125  # below, float32 loses what it adds up
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BandedPlan:
    """A plan and what it cost.

    Attributes:
        row_of: (n,) uint32; each segment holds the rows it holds in the float32 plan, in an order of its own.
        rescored: rows that were scored in float32.
    """

    row_of: npt.NDArray[np.uint32]
    rescored: int


@dataclass(frozen=True)
class Bounds:
    """(n,) float64 each: the float32 score of a row lies in `low`..`high`, `middle` is the one found in bfloat16."""

    low: F64
    middle: F64
    high: F64


def banded_plan(
    embeddings: F32,
    prototypes: F32,
    statistic: str,
    cuts: npt.ArrayLike,
    temperature: float = DEFAULT_TEMPERATURE,
    *,
    terms: int = 1,
    device: torch.device = _CPU,
    compiled: bool = False,
) -> BandedPlan:
    """The segments of `order_rows(getattr(uncertainty(...), statistic))` on the same device, mostly from bfloat16.

    Args:
        embeddings, prototypes, temperature, device, compiled: as `uncertainty`.
        statistic: one of `STATISTICS`.
        cuts: rising ranks in 1..n-1 at which a segment begins. Many cuts leave many rows in doubt: use three terms.
        terms: 1, or 3 for bounds about a hundred times closer at three times the multiplications.

    Raises ValueError for another statistic, number of terms or cuts, where torch shortens float32 products, and as
    `uncertainty`.
    """
    check(embeddings, prototypes, temperature)
    n = len(embeddings)
    ends = np.append(np.asarray(cuts, np.int64), n)
    if statistic not in STATISTICS or terms not in (1, 3):
        raise ValueError(
            f"statistic must be one of {', '.join(STATISTICS)} and terms 1 or 3, not {statistic!r}, {terms}"
        )
    if (np.diff(ends, prepend=0) < 1).any() and n:
        raise ValueError(f"cuts must rise within 1..{n - 1}")
    if torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            "float32 products are shortened here, no bound holds: call torch.set_float32_matmul_precision('highest')"
        )
    bounds = bounded_scores(
        embeddings, prototypes, statistic, temperature, terms=terms, device=device, compiled=compiled
    )
    best, worst = possible_ranks(bounds.low, bounds.high)
    first, last = (np.searchsorted(ends, ranks, side="right") for ranks in (best, worst))
    band = np.flatnonzero(first != last)
    exact = uncertainty(embeddings, prototypes, temperature, rows=band, device=device, compiled=compiled)
    scores: F32 = getattr(exact, statistic)
    segment = first.copy()
    # Ties go by row: `band` rises, so a place in it settles them as the row does.
    segment[band[order_rows(scores)]] = _lacking(np.delete(first, band), ends)
    found = bounds.middle.copy()
    found[band] = scores
    return BandedPlan(np.lexsort((-found, segment)).astype(np.uint32), len(band))


def bounded_scores(
    embeddings: F32,
    prototypes: F32,
    statistic: str,
    temperature: float = DEFAULT_TEMPERATURE,
    *,
    terms: int = 1,
    device: torch.device = _CPU,
    compiled: bool = False,
) -> Bounds:
    """The statistic of every row in bfloat16, and between which bounds float32 finds it (see the module)."""
    C, d = prototypes.shape
    weights = _parts(torch.from_numpy(np.ascontiguousarray(prototypes, np.float32)).to(device), terms)
    right = torch.cat([weights[0], weights[1], weights[0]], 1) if terms == 3 else weights[0]
    right, largest = right.T.contiguous(), _norms(weights).amax(dim=1).tolist()
    errors: list[Tensor] = []
    out = torch.empty(chunk_rows(len(embeddings), C, device), C, device=device)

    def logits_of(chunk: Tensor) -> Tensor:
        parts = _parts(bring(chunk, device), terms)
        left = torch.cat([parts[0], parts[0], parts[1]], 1) if terms == 3 else parts[0]
        _multiply(left, right, out)
        out.div_(temperature)
        errors.append(_similarity_error(_norms(parts), largest, d))
        return out

    found = scan(embeddings, C, logits_of, fused(compiled, squares=True), device=device, count=4).double()
    size = len(errors[0]) if errors else 0
    error = torch.empty(len(embeddings), dtype=torch.float64)
    for number, values in enumerate(errors):
        at = min(number * size, len(embeddings) - size)  # as `scan` cuts
        error[at : at + size] = values.cpu()
    return _bounds(found, error / temperature, C, STATISTICS.index(statistic))


def possible_ranks(low: F64, high: F64) -> tuple[I64, I64]:
    """The best and the worst rank each row can have by falling score, when ties may go either way: (n,) int64 each.

    Best: the rows that certainly lie above it. Worst: those that possibly do, itself not counted.
    """
    n = len(low)
    best = n - np.searchsorted(np.sort(low), high, side="right")
    worst = n - np.searchsorted(np.sort(high), low, side="left") - 1
    return best, worst


def _lacking(settled: I64, ends: I64) -> I64:
    """The segments of the rows in doubt, in rising order: each segment as often as it lacks a row."""
    lacking = np.diff(ends, prepend=0) - np.bincount(settled, minlength=len(ends))
    return np.repeat(np.arange(len(ends)), lacking)


def _parts(vectors: Tensor, terms: int) -> list[Tensor]:
    """Float32 vectors as bfloat16 parts, the largest first, and what is left in float32: terms 1 → 2, terms 3 → 3."""
    high = vectors.bfloat16()
    left = vectors - high.float()  # exact: the two agree in their leading bits
    if terms == 1:
        return [high, left]
    low = left.bfloat16()
    return [high, low, left - low.float()]


def _norms(parts: list[Tensor]) -> Tensor:
    """(parts, n) float64 L2 norms."""
    return torch.stack([part.double().norm(dim=1) for part in parts])


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right of bfloat16, summed and kept in float32.

    A product of two bfloat16 is exact in float32, so a processor that can keep only bfloat16 multiplies in float32: the
    same bound, no gain.
    """
    if left.device.type == "cuda":
        with _float32_sums():
            out.copy_(torch.mm(left, right, out_dtype=torch.float32))
    else:
        torch.mm(left.float(), right.float(), out=out)


@contextmanager
def _float32_sums() -> Iterator[None]:
    # By default cuBLAS may add up parts of a long sum in bfloat16, which no bound here allows for.
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before


def _similarity_error(norms: Tensor, largest: list[float], d: int) -> Tensor:
    """(k,) float64: how far a similarity may be off, from (parts, k) norms and the largest norms of the prototypes."""
    whole, whole_w = norms.sum(dim=0), sum(largest)
    if len(norms) == 2:
        error, products = norms[1] * whole_w + norms[0] * largest[1], d
    else:
        error = norms[1] * largest[1] + norms[2] * whole_w + (norms[0] + norms[1]) * largest[2]
        products = 3 * d
    units = 1 if norms.device.type == "cpu" else 2
    return error + (units * products + d + 16) * _UNIT * whole * whole_w


def _bounds(found: Tensor, delta: Tensor, C: int, which: int) -> Bounds:
    """Both ends from (4, n) moments and (n,) bounds of the logits' errors."""
    middle = statistics(found[:3].clone(), C)[which]
    sums = (C + 64) * _UNIT
    if STATISTICS[which] == "entropy":
        low, high = _entropy_ends(found, middle, delta, C, sums)
    else:
        factor = (2 * (delta + sums)).exp()
        low, high = (
            _quotient(found, by, lost, which) for by, lost in ((1 / factor, -C * _TINY), (factor, C * _TINY))
        )
    # The last few roundings of the float32 formula.
    return Bounds((low * (1 - 8 * _UNIT)).numpy(), middle.numpy(), (high * (1 + 8 * _UNIT)).numpy())


def _quotient(found: Tensor, by: Tensor, lost: float, which: int) -> Tensor:
    """Least confidence or margin when `rest` and `second` are `by` times as large; `lost`: what underflow may take."""
    rest = (found[0] * by + lost).clamp_(min=0)
    second = (found[1] * by + lost).clamp_(0, 1) if STATISTICS[which] == "margin" else 0.0
    return (rest + second) / (1 + rest)


def _entropy_ends(found: Tensor, middle: Tensor, delta: Tensor, C: int, sums: float) -> tuple[Tensor, Tensor]:
    total = 1 + found[0]
    mean, square = found[2] / total, found[3] / total
    # The difference of two rounded numbers, by its upper end.
    spread = (square - mean**2 + 3 * sums * (square + mean**2)).clamp_(min=0).sqrt()
    off = delta * ((spread + 1) * delta.exp() - 1) + 2 * sums * (1 + 2 * mean.abs())
    off = off / math.log(C) + 16 * _UNIT
    return (middle - off).clamp_(0, 1), (middle + off).clamp_(0, 1)
