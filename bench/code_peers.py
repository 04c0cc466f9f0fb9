"""What codes are measured beside: FAISS's indexes of as many bytes, and of more, each given floats as it is meant to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from models.codecs import fit_codec, load_codec
from models.codecs.base import Codec
from models.codecs.codes import CodeShape
from models.codecs.rotation import turning
from orchestrator.index import IndexOptions, make_index

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
LOOPS = 2
# Vectors that anything is fitted to, and that are encoded together.
TRAINED_ON, CHUNK = 20_000, 50_000


@dataclass(frozen=True)
class Contender:
    """One way to search.

    Attributes:
        bytes_a_row: of its codes and of what it keeps beside them.
        equal: whether it takes no more bytes than our codes, and so is a peer.
        prepare: what is done to the queries before the search is timed: ours are encoded by the codec, as served.
        search: prepared queries and k -> rows (q, k).
    """

    name: str
    bytes_a_row: int
    equal: bool
    prepare: Callable[[Vectors], Any]
    search: Callable[[Any, int], Rows]


def fitted(vectors: Vectors, width: int, folder: Path, seed: int) -> Codec:
    """The codec `rotation`, its step fitted to some of these vectors."""
    some = sample(vectors, seed)
    fit_codec(
        "rotation",
        some,
        some,
        np.arange(len(some)),
        width=width,
        loops=LOOPS,
        folder=folder,
        name="rotation",
        modality="text",
        source_fingerprint="sha256:" + "0" * 64,
        seed=seed,
    )
    return load_codec(folder)


def sample(vectors: Vectors, seed: int) -> Vectors:
    """At most TRAINED_ON of them."""
    rows = np.random.default_rng(seed).permutation(len(vectors))[:TRAINED_ON]
    return np.ascontiguousarray(vectors[np.sort(rows)])


def bytes_a_row(shape: CodeShape) -> int:
    """Of our index: the bits, a length twice, and what kind of row it is."""
    return shape.row_bytes + 9


def codes(name: str, codec: Codec, vectors: Vectors, backend: str = "codes") -> Contender:
    """Our index, filled in slices as a replica fills it; lists are made of all codes at once."""
    shape = codec.shape

    def unit(some: Vectors) -> Vectors:
        return shape.unit(codec.encode(some))

    options = IndexOptions(code=shape)
    if backend == "codes":
        index = make_index(backend, np.zeros((0, shape.width), np.float32), options)
        index.grow(len(vectors))
        for at in range(0, len(vectors), CHUNK):
            part = vectors[at : at + CHUNK]
            index.replace(np.arange(at, at + len(part)), unit(part))
    else:
        every = [unit(vectors[at : at + CHUNK]) for at in range(0, len(vectors), CHUNK)]
        index = make_index(backend, np.concatenate(every), options)
    return Contender(name, bytes_a_row(shape), True, unit, lambda asked, k: index.search(asked, k)[1])


def floats(vectors: Vectors) -> Contender:
    """FAISS's scan of the floats themselves."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return Contender("float32, IndexFlatIP", 4 * vectors.shape[1], False, _same, _searching(index))


def peers(vectors: Vectors, width: int, seed: int) -> Iterator[Contender]:
    """FAISS's ways at the bytes of a code of `width`, then those with more, each made when its turn comes."""
    dim, shape = vectors.shape[1], CodeShape(width, LOOPS)
    most = bytes_a_row(shape)
    some = sample(vectors, seed)
    yield _binary(vectors, 8 * shape.row_bytes, seed)
    # As many 4-bit numbers as fit, two dimensions each: the vectors are turned into so many dimensions first.
    numbers = 2 * shape.row_bytes
    turn = faiss.RandomRotationMatrix(dim, 2 * numbers)
    turn.init(seed)
    yield _made(
        f"PQFastScan {numbers} × 4 bits, turned into {2 * numbers} dimensions",
        faiss.IndexPreTransform(turn, faiss.IndexPQFastScan(2 * numbers, numbers, 4, faiss.METRIC_L2)),
        some, vectors, shape.row_bytes, most,
    )  # fmt: skip
    for bits in (2, 3):
        turn = faiss.RandomRotationMatrix(dim, dim)
        turn.init(seed)
        inner = faiss.IndexRaBitQFastScan(dim, faiss.METRIC_L2, 32, bits)
        yield _made(
            f"RaBitQFastScan {bits} bits", faiss.IndexPreTransform(turn, inner), some, vectors, inner.code_size, most
        )  # fmt: skip
    for bits, kind in ((4, faiss.ScalarQuantizer.QT_4bit), (8, faiss.ScalarQuantizer.QT_8bit)):
        scalar = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        yield _made(f"SQ{bits}", scalar, some, vectors, scalar.code_size, most)


def _binary(vectors: Vectors, bits: int, seed: int) -> Contender:
    """The signs of the vectors in random directions, as many as there are bits."""
    directions = turning(vectors[:0], bits, np.random.default_rng(seed))

    def signs(some: Vectors) -> npt.NDArray[np.uint8]:
        return np.packbits(some @ directions > 0, axis=1)

    index = faiss.IndexBinaryFlat(bits)
    for at in range(0, len(vectors), CHUNK):
        index.add(signs(vectors[at : at + CHUNK]))
    return Contender(f"BinaryFlat {bits} bits", bits // 8, True, signs, _searching(index))


def _made(name: str, index: Any, some: Vectors, vectors: Vectors, size: int, most: int) -> Contender:
    index.train(some)
    for at in range(0, len(vectors), CHUNK):
        index.add(vectors[at : at + CHUNK])
    return Contender(name, size, size <= most, _same, _searching(index))


def _same(queries: Vectors) -> Vectors:
    return queries


def _searching(index: Any) -> Callable[[Any, int], Rows]:
    return lambda queries, k: index.search(queries, k)[1]
