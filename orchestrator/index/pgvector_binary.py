"""Vectors in PostgreSQL's binary form, packed by numpy: no number is written as text on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format
from psycopg.types import TypeInfo

from orchestrator.index import Rows, Vectors

# Signature, flags and the length of an extension that nobody has defined yet (PostgreSQL's COPY, "Binary Format").
COPY_HEADER, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


class Packed:
    """A value in PostgreSQL's binary form."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class VectorArray(Packed):
    """A vector[]."""


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        return obj.data


def register(connection: psycopg.Connection[Any]) -> None:
    """Let a connection send vectors; pgvector's schema is on its search path."""
    found = TypeInfo.fetch(connection, "vector")
    assert found is not None
    for kind, oid in ((Packed, found.oid), (VectorArray, found.array_oid)):
        connection.adapters.register_dumper(kind, type("", (_Dumper,), {"oid": oid}))


def _tuples(dim: int) -> np.dtype[Any]:
    """A tuple (row, vec) as binary COPY writes it: number of fields, then each with its length before it."""
    return np.dtype(
        [("fields", ">i2"), ("size", ">i4"), ("row", ">i4"), ("vector_size", ">i4"), ("dim", ">i2"), ("zero", ">i2"),
         ("values", ">f4", (dim,))]
    )  # fmt: skip


def copy_rows(rows: Rows, vectors: Vectors) -> bytes:
    """Tuples (row, vec) for COPY, between its header and its end."""
    tuples = np.zeros(len(rows), _tuples(vectors.shape[1]))
    tuples["fields"], tuples["size"], tuples["row"] = 2, 4, rows
    tuples["vector_size"], tuples["dim"], tuples["values"] = (
        4 + 4 * vectors.shape[1],
        vectors.shape[1],
        vectors,
    )
    return tuples.tobytes()


def vector_array(connection: psycopg.Connection[Any], vectors: Vectors) -> VectorArray:
    """Vectors (m, dim) as a binary vector[]: dimensions, no nulls, the element's type, length, first number, elements."""
    dim = vectors.shape[1]
    elements = np.zeros(
        len(vectors), np.dtype([("size", ">i4"), ("dim", ">i2"), ("zero", ">i2"), ("values", ">f4", (dim,))])
    )
    elements["size"], elements["dim"], elements["values"] = 4 + 4 * dim, dim, vectors
    oid = connection.adapters.get_dumper(Packed, PyFormat.BINARY).oid
    return VectorArray(np.array([1, 0, oid, len(vectors), 1], ">i4").tobytes() + elements.tobytes())


def from_copy(data: bytes | bytearray, dim: int) -> Any:
    """The tuples (row, vec) that COPY has sent, header and end included, as a structured array."""
    tuples = _tuples(dim)
    count = (len(data) - len(COPY_HEADER) - len(COPY_END)) // tuples.itemsize
    return np.frombuffer(data, tuples, count=count, offset=len(COPY_HEADER))
