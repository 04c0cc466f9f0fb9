"""How unsure a set of prototypes is about each embedding: three statistics of one softmax, in one fused pass.

With `P = softmax(f . w_c / T)` over C prototypes, P(1) and P(2) its two largest entries (METHODS.md, "Backfill orders"):

- least confidence: `1 - P(1)`
- margin: `1 - (P(1) - P(2))`
- entropy: `-sum_c P_c log P_c / log C`

All three lie in 0..1 and grow with uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

DEFAULT_TEMPERATURE = 0.05
"""T of the softmax over cosine similarities."""

_CHUNK_ROWS = 512
_SCRATCH_BYTES = 12 * 2**20
_PLACE_BLOCK = 64
_DEVICE_CHUNK_ROWS = 4096
_DEVICE_SCRATCH_BYTES = 2**30
_CPU = torch.device("cpu")

# (k, d) embeddings on the host -> their (k, C) float32 logits, which may lie where the ones before lay.
LogitsOf = Callable[[torch.Tensor], torch.Tensor]
# (rows, C) float32 logits, (rows, C) scratch -> (3 or 4, rows): see `moments`.
MomentsOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Uncertainty:
    """(n,) float32 each, 0 (sure) .. 1 (unsure)."""

    least_confidence: F32
    margin: F32
    entropy: F32


def uncertainty(
    embeddings: F32,
    prototypes: F32,
    temperature: float = DEFAULT_TEMPERATURE,
    *,
    rows: I64 | None = None,
    device: torch.device = _CPU,
    compiled: bool = False,
) -> Uncertainty:
    """The three statistics of every embedding.

    Args:
        embeddings: (n, d) float32, L2-normalised; a memory map is read chunk by chunk.
        prototypes: (C, d) float32, L2-normalised, C >= 2.
        temperature: T > 0.
        rows: (m,) int64; only these, in this order: (m,) statistics. Each row has the place in a chunk that it has in a
            call for all rows, so on the same device its statistics are the same bits in both.
        device: where to compute.
        compiled: let torch.compile fuse the statistics, after up to a minute of compiling; on a CPU it needs a C++ compiler.

    Scratch on a CPU: under 32 MB beside the results and one scaled copy of the prototypes, as long as C < 3e6; on another
    device up to 1 GiB there.
    Raises ValueError for fewer than two prototypes, other dimensions, or T <= 0.
    """
    check(embeddings, prototypes, temperature)
    scaled = torch.from_numpy(np.ascontiguousarray(prototypes, np.float32)) / temperature
    C = len(prototypes)
    found = scan(
        embeddings,
        C,
        product_with(scaled, chunk_rows(len(embeddings), C, device), device),
        fused(compiled),
        rows=rows,
        device=device,
    )
    return Uncertainty(*statistics(found, C).numpy())


def scan(
    embeddings: F32,
    C: int,
    logits_of: LogitsOf,
    moments_of: MomentsOf,
    *,
    rows: I64 | None = None,
    device: torch.device = _CPU,
    count: int = 3,
) -> torch.Tensor:
    """(count, m) float32 moments of all rows, or of `rows`, in chunks of one shape.

    Args:
        logits_of: the (k, C) logits of (k, d) embeddings on the host; they are overwritten.
        moments_of: `count` moments of them; may overwrite both its arguments.
    """
    n, d = embeddings.shape
    m = n if rows is None else len(rows)
    results = torch.empty(count, m, device=device)
    if m == 0:
        return results.cpu()
    size = chunk_rows(n, C, device)
    scratch = torch.empty(size, C, device=device)
    # Always the same memory: libraries may add up in another order where it is aligned otherwise.
    chunk = torch.zeros(size, d)
    for where, places, taken in _all_chunks(n, size) if rows is None else _chunks_of(rows, n, size):
        chunk.numpy()[places] = embeddings[taken]
        results[:, where] = moments_of(logits_of(chunk), scratch)[:, places]
    return results.cpu()


def product_with(weights: torch.Tensor, rows: int, device: torch.device) -> LogitsOf:
    """The float32 dot products of (rows, d) embeddings with `weights` (C, d)."""
    if device.type == "cpu" and onednn_product_exists():
        return _product_by_onednn(weights, rows)
    transposed = weights.T.contiguous().to(device)
    out = torch.empty(rows, len(weights), device=device)
    return lambda chunk: torch.mm(bring(chunk, device), transposed, out=out)


def onednn_product_exists() -> bool:
    """Whether this torch offers oneDNN's product with weights laid out once: operators of torch.compile's, so look first."""
    offered = ("_reorder_linear_weight", "_linear_pointwise")
    return bool(torch._C._has_mkldnn) and all(hasattr(torch.ops.mkldnn, name) for name in offered)


def _product_by_onednn(weights: torch.Tensor, rows: int) -> LogitsOf:
    # torch.mm is MKL's, which keeps AVX-512 for Intel's processors: on AMD's oneDNN is more than twice as fast.
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weights, rows)

    def logits_of(chunk: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(chunk, laid_out, None, "none", [], "")
        return found

    return logits_of


Chunk = tuple[Any, Any, Any]
"""Which results a chunk gives, from which of its places, for which rows: slices or int64 arrays of one length."""


def _all_chunks(n: int, size: int) -> Iterator[Chunk]:
    """Every row, in chunks of one shape: the last one begins `size` before the end and overlaps the one before."""
    for at in range(0, n, size):
        at = min(at, n - size)
        rows = slice(at, at + size)
        yield rows, slice(None), rows


def _chunks_of(rows: I64, n: int, size: int) -> Iterator[Chunk]:
    """Some rows, each at the place in a chunk that it has among all.

    A matrix product may add up in another order at another place of the same chunk (seen with MKL), and so give other bits.
    """
    places = np.where(rows >= n - size, rows - (n - size), rows % size)
    by_place = np.argsort(places, kind="stable")
    ordered = places[by_place]
    rounds = np.arange(len(rows)) - np.searchsorted(ordered, ordered)  # how many of its place come before it
    for members in np.split(by_place[np.argsort(rounds, kind="stable")], np.cumsum(np.bincount(rounds))[:-1]):
        yield torch.from_numpy(members), places[members], rows[members]


def bring(chunk: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Embeddings of the host on `device`; a GPU goes on computing while the next ones are read and copied."""
    if device.type == "cuda":
        return chunk.pin_memory().to(device, non_blocking=True)
    return chunk.to(device)


def chunk_rows(n: int, C: int, device: torch.device = _CPU) -> int:
    """Rows of one chunk: two (rows, C) float32 buffers stay in the cache of a CPU; elsewhere in memory."""
    most, scratch = (
        (_CHUNK_ROWS, _SCRATCH_BYTES) if device.type == "cpu" else (_DEVICE_CHUNK_ROWS, _DEVICE_SCRATCH_BYTES)
    )
    return max(1, min(most, n, scratch // (2 * 4 * C)))


def moments(logits: torch.Tensor, weights: torch.Tensor, *, squares: bool = False) -> torch.Tensor:
    """(3, rows), or (4, rows) with `squares`, of (rows, C) logits l; both buffers are overwritten.

    With x_c = exp(l_c - max l) and the largest entry taken out (x = 1 there):

        rest = sum x      second = max x      expected = sum x (l - max l)      squares = sum x (l - max l)^2

    `rest` keeps full precision where the softmax is nearly one-hot, which is where `1 - P(1)` by subtraction would not.
    The largest entry adds 0 to the last two, so it may stay out.
    """
    largest, where = _largest(logits)
    logits -= largest
    torch.exp(logits, out=weights)
    weights.scatter_(1, where, 0.0)
    found = [weights.sum(dim=1), weights.amax(dim=1), weights.mul_(logits).sum(dim=1)]
    if squares:
        found.append(weights.mul_(logits).sum(dim=1))
    return torch.stack(found)


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, 1) each: the largest entry of every line, and one of the places where it stands.

    A maximum is found at the speed of memory, its place at a tenth of that on a CPU. So: the maxima of blocks, the place of
    the largest among these few, and its place within that one block. The last block overlaps the one before.
    """
    C = logits.shape[1]
    if logits.device.type != "cpu" or C < 4 * _PLACE_BLOCK:
        return logits.max(dim=1, keepdim=True)
    whole = C // _PLACE_BLOCK
    blocks = logits[:, : whole * _PLACE_BLOCK].reshape(-1, whole, _PLACE_BLOCK).amax(dim=2)
    last = logits[:, C - _PLACE_BLOCK :].amax(dim=1, keepdim=True)
    largest, block = torch.cat([blocks, last], dim=1).max(dim=1, keepdim=True)
    first = torch.where(block == whole, C - _PLACE_BLOCK, block * _PLACE_BLOCK)
    columns = first + torch.arange(_PLACE_BLOCK)
    return largest, first + logits.gather(1, columns).argmax(dim=1, keepdim=True)


def moments_apart(logits: torch.Tensor, weights: torch.Tensor, *, squares: bool = False) -> torch.Tensor:
    """`moments` without overwriting anything: what a compiler fuses into two reads of the logits. `weights` is unused.

    The place of the largest entry is not looked for: all that equal it are taken out, and all but one are counted again.
    """
    shifted = logits - logits.amax(dim=1, keepdim=True)
    largest = shifted == 0
    others = largest.sum(dim=1) - 1
    x = torch.where(largest, 0.0, torch.exp(shifted))
    found = [
        x.sum(dim=1) + others,
        torch.where(others > 0, 1.0, x.amax(dim=1)),
        (x * shifted).sum(dim=1),
    ]
    if squares:
        found.append((x * shifted * shifted).sum(dim=1))
    return torch.stack(found)


def fused(compiled: bool, *, squares: bool = False) -> MomentsOf:
    """The moments in place, or compiled."""
    return _compiled(squares) if compiled else partial(moments, squares=squares)


@cache
def _compiled(squares: bool) -> MomentsOf:
    # Kept: torch.compile keeps what it compiled with the function. Not at import: it loads the compiler.
    made: MomentsOf = torch.compile(partial(moments_apart, squares=squares))
    return made


def statistics(found: torch.Tensor, C: int) -> torch.Tensor:
    """(3, n): least confidence, margin and entropy from (3, n) moments of C logits each."""
    rest, second, expected = found
    total = 1 + rest
    entropy = (torch.log1p(rest) - expected / total) / math.log(C)
    return torch.stack([rest / total, (rest + second) / total, entropy.clamp_(0.0, 1.0)])


def check(embeddings: F32, prototypes: F32, temperature: float) -> None:
    """Raise ValueError for fewer than two prototypes, other dimensions, or T <= 0."""
    if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"embeddings {embeddings.shape} and prototypes {prototypes.shape} must be (n, d) and (C, d)"
        )
    if len(prototypes) < 2:
        raise ValueError(f"uncertainty needs at least two prototypes, not {len(prototypes)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
