"""Inner products of codes by XOR and popcount, compiled by numba: exact integers, the best of them kept as they come.

Σ_i l^q_i l^d_i = m M² − 2 Σ_{j,k} 2^{j+k} popcount(q_j ^ d_k), with the levels l = 2c − M and bit j of every dimension in the
plane q_j: formula (2) of the codes' paper, in whole numbers. Codes lie in blocks of LANES: of each word of each plane the
LANES rows side by side, so that one instruction of the processor counts the bits of several rows (VPOPCNTQ where there is
AVX-512; LLVM writes what there is elsewhere).

Everything compiled is in this file: numba looks at a file's time to know whether what it compiled earlier is still good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UnreachableError

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError as missing:
    raise UnreachableError(
        "numba is not installed: pip install 'hotrefresh[cpu]' (or 'hotrefresh[gpu]' on a CUDA machine, never both)."
    ) from missing

LANES = 16
"""Rows of a block: two registers of AVX-512."""

GONE = -1
"""The square of a slot that is never answered."""

Words = npt.NDArray[np.uint64]

# Blocks that all queries of a batch look at before the next ones: 200 KiB of 96-byte codes stay in the L2 cache.
_TILE = 128
_LINE = 8  # words that memory delivers together
# Scores are compared in float32 first, which is off by less than this; what may be good enough is computed exactly.
_SLACK = 1e-6
_EMPTY, _SIGN, _POSITIVE = np.uint64(2**64 - 1), np.uint32(2**31), np.uint32(2**31 - 1)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when it is first called, and kept on disk where numba finds a folder that it may write (NUMBA_CACHE_DIR,
    beside this file, or the user's cache); without one every process compiles anew, which takes seconds."""
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # "no locator available"
        return njit(function, nogil=True)


@intrinsic  # type: ignore[untyped-decorator]
def _passes(
    context: Any,
    words: Any,
    at: Any,
    query: Any,
    length: Any,
    planes: Any,
    most: Any,
    inverse: Any,
    slot: Any,
    edge: Any,
    out: Any,
) -> Any:
    """Whether a row of the block that begins at words[at] and inverse[slot] reaches `edge`; out[lane] is its product.

    Written as vectors of LANES numbers, because LLVM makes none of the loops: each weight j + k has a register of its own,
    which is shifted once at the end. `planes` is a tuple of any values, one a plane: its length is known when this compiles.
    `length`: words a plane. Products divided by lengths are compared in float32.
    """
    bits = planes.count
    signature = types.boolean(words, at, query, length, planes, most, inverse, slot, edge, out)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number, lanes = ir.IntType(64), ir.VectorType(ir.IntType(64), LANES)
        reals = ir.VectorType(ir.FloatType(), LANES)
        begin, asked, lengths, result = (
            context.make_array(signature.args[place])(context, builder, values[place]).data
            for place in (0, 2, 6, 9)
        )
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(lanes, [lanes]), f"llvm.ctpop.v{LANES}i64"
        )
        sums = [cgutils.alloca_once(builder, lanes) for _ in range(2 * bits - 1)]
        for one in sums:
            builder.store(ir.Constant(lanes, [0] * LANES), one)
        begin = builder.gep(begin, [values[1]])
        with cgutils.for_range(builder, values[3]) as loop:
            first = builder.mul(loop.index, number(bits))
            rows = []
            for k in range(bits):
                place = builder.mul(builder.add(first, number(k)), number(LANES))
                rows.append(_load(builder, builder.gep(begin, [place]), lanes))
            for j in range(bits):
                word = _on_all_lanes(
                    builder, builder.load(builder.gep(asked, [builder.add(first, number(j))])), lanes
                )
                for k in range(bits):
                    found = builder.call(popcount, [builder.xor(word, rows[k])])
                    builder.store(builder.add(builder.load(sums[j + k]), found), sums[j + k])
        total = builder.load(sums[0])
        for weight in range(1, 2 * bits - 1):
            shifted = builder.shl(builder.load(sums[weight]), ir.Constant(lanes, [weight] * LANES))
            total = builder.add(total, shifted)
        products = builder.sub(
            _on_all_lanes(builder, values[5], lanes), builder.shl(total, ir.Constant(lanes, [1] * LANES))
        )
        builder.store(products, builder.bitcast(result, lanes.as_pointer()), align=8)
        scores = builder.fmul(
            builder.sitofp(products, reals), _load(builder, builder.gep(lengths, [values[7]]), reals)
        )
        reached = builder.fcmp_ordered(">=", scores, _on_all_lanes(builder, values[8], reals))
        return builder.icmp_unsigned("!=", builder.bitcast(reached, ir.IntType(LANES)), ir.IntType(LANES)(0))

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(context: Any, words: Any, at: Any, count: Any) -> Any:
    """Ask memory for words[at : at + count] before they are needed."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        begin = context.make_array(signature.args[0])(context, builder, values[0]).data
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        line = ir.IntType(64)(_LINE)
        with cgutils.for_range(builder, builder.udiv(values[2], line)) as loop:
            place = builder.gep(begin, [builder.add(values[1], builder.mul(loop.index, line))])
            builder.call(prefetch, [builder.bitcast(place, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(words, at, count), generate


def _load(builder: Any, begin: Any, lanes: Any) -> Any:
    return builder.load(builder.bitcast(begin, lanes.as_pointer()), align=4)


def _on_all_lanes(builder: Any, value: Any, lanes: Any) -> Any:
    nothing = ir.Constant(lanes, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


@_compiled
def _edge(heap: Any, norm: Any) -> Any:
    """What a row's product, divided by its own length, must reach to be looked at: a little less than the worst kept."""
    if heap[0] == _EMPTY:
        return np.float32(-np.inf)
    bits = np.uint32(heap[0] >> np.uint64(32))
    score = np.uint32(bits if bits >= _SIGN else bits ^ _POSITIVE).view(np.float32)
    return np.float32((np.float64(score) - _SLACK) * norm)


@_compiled
def _key(score: Any, row: Any) -> Any:
    """`orchestrator.core.keys.pack` of one score."""
    bits = np.float32(score).view(np.uint32)
    falling = bits if bits >= _SIGN else bits ^ _POSITIVE
    return np.uint64(falling) << np.uint64(32) | np.uint64(row)


@_compiled
def _push(heap: Any, key: Any) -> Any:
    """The worst of a heap (the greatest key, at 0) gives way to `key`."""
    at, size = 0, len(heap)
    while True:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if child >= size or heap[child] <= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key


@_compiled
def _keep(products: Any, squares: Any, rows: Any, square: Any, allowed: Any, heap: Any, at: Any) -> Any:
    """Of the block whose first slot is `at`, keep what is good enough."""
    for lane in range(LANES):
        slot = at + lane
        row = rows[slot] if len(rows) else slot
        if squares[slot] < 0 or (len(allowed) and not allowed[row]):
            continue
        lengths = np.float64(squares[slot]) * square
        score = products[lane] / np.sqrt(lengths) if lengths > 0 else 0.0
        key = _key(score, row)
        if key < heap[0]:
            _push(heap, key)


@_compiled
def scan(
    words: Any,
    inverse: Any,
    squares: Any,
    queries: Any,
    lengths: Any,
    planes: Any,
    most: Any,
    allowed: Any,
    heaps: Any,
) -> Any:
    """Every query against every block.

    Args:
        words: (blocks · length · bits · LANES) uint64, a block after the other: each word of each plane for its rows.
        inverse: (slots,) float32, one over a row's length in levels; 0 for a row without a code.
        squares: (slots,) int32, Σ level² of a row; 0 without a code, which scores 0; GONE: never answered.
        queries: (q, length · bits) uint64 and lengths (q,) float64, their Σ level²; 0: a query without a code, which
            scores 0 with each.
        planes: a tuple as long as there are planes.
        most: m M², int.
        allowed: (slots,) bool, or none: all.
        heaps: (q, k) uint64 keys, EMPTY at first; the k best of each query, in no order.
    """
    products, size = np.empty(LANES, np.int64), queries.shape[1]
    nowhere = np.empty(0, np.int64)
    blocks = len(squares) // LANES
    for first in range(0, blocks, _TILE):
        for asked in range(len(queries)):
            query, heap, norm = queries[asked], heaps[asked], np.sqrt(lengths[asked])
            edge = _edge(heap, norm)
            for block in range(first, min(blocks, first + _TILE)):
                at = block * LANES
                if len(allowed) and not allowed[at : at + LANES].any():
                    continue
                if _passes(
                    words, at * size, query, size // len(planes), planes, most, inverse, at, edge, products
                ):
                    _keep(products, squares, nowhere, lengths[asked], allowed, heap, at)
                    edge = _edge(heap, norm)


@_compiled
def scan_lists(
    words: Any,
    inverse: Any,
    squares: Any,
    rows: Any,
    queries: Any,
    lengths: Any,
    planes: Any,
    most: Any,
    allowed: Any,
    heaps: Any,
    lists: Any,
    last: Any,
    before: Any,
) -> Any:
    """Every query against the blocks of some lists: as `scan`, with slots in any order.

    Args:
        rows: (slots,) int64, whose code is in a slot; slots without are GONE.
        allowed: by row, or none.
        lists: (q, p) int64, of each query; -1: none.
        last: (lists,) int64, the last block of each list, -1 for none; before (blocks,) int64: the one before a block.
    """
    products, size = np.empty(LANES, np.int64), queries.shape[1]
    for asked in range(len(queries)):
        query, heap, norm = queries[asked], heaps[asked], np.sqrt(lengths[asked])
        edge = _edge(heap, norm)
        for place in range(lists.shape[1]):
            block = last[lists[asked, place]] if lists[asked, place] >= 0 else -1
            while block >= 0:
                at = block * LANES
                following = before[block]
                if (
                    following >= 0
                ):  # lists lie anywhere in memory: the next block is on its way while this one is compared
                    _fetch(words, following * LANES * size, LANES * size)
                if _passes(
                    words, at * size, query, size // len(planes), planes, most, inverse, at, edge, products
                ):
                    _keep(products, squares, rows, lengths[asked], allowed, heap, at)
                    edge = _edge(heap, norm)
                block = following
