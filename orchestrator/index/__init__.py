"""Mixed-version indexes: one file a backend behind one protocol, registered here by name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UsageError
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from models.codecs.codes import CodeShape

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class VectorIndex(Protocol):
    """Vectors by dense row, searched by inner product. Not safe for a write beside reads: the replica's lock is.

    Searches may run beside searches. Errors of a server behind it are `UnreachableError`.
    """

    exact: bool
    """Whether a search answers what a comparison with every vector would."""
    dim: int

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Overwrite rows (m,) with vectors (m, dim); of a row that is there twice the last one stays."""

    def grow(self, n: int) -> None:
        """Hold `n` rows; the new ones are zero until they are replaced."""

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """The k best by inner product: scores (q, k) falling and rows (q, k); -1 where there are fewer.

        `allowed`: (n,) bool, the rows that may be answered; None: all. A row of zeros is one without a vector: it is
        answered with score 0 or left out.
        """

    def vectors(self) -> Vectors:
        """All vectors as they stand, (n, dim), not to be written.

        A backend that keeps them elsewhere reads them all back, which takes as long as that takes: only a replica's
        snapshot asks. A second copy in this process would cost what such a backend is there to save.
        """

    def read(self, rows: Rows) -> Vectors | None:
        """A copy of these rows, (m, dim), as they stand; None: a server has them, and it is not asked for all of them."""

    def close(self) -> None:
        """Give back what it holds outside this process; nothing but another `close` is called after it."""


class Lock(Protocol):
    """Many readers or one writer: what the owner of an index holds while it searches or writes."""

    def read(self) -> AbstractContextManager[None]:
        """Hold it beside other readers."""

    def write(self) -> AbstractContextManager[None]:
        """Hold it alone."""


@dataclass(frozen=True)
class IndexOptions:
    """What backends may be told; each reads what concerns it.

    Attributes:
        url: the server of a backend that has one; None: a file in `folder`.
        token: of that server; never shown.
        folder: where a backend may keep files while it is open.
        shards: row ranges that are searched side by side.
        nprobe: lists that an IVF looks into; None: a sixteenth of them, and at least 8.
        ef: candidates that an HNSW graph keeps while it searches.
        rebuild_share: share of rows replaced since the lists of an IVF were made that calls for new ones.
        device: of the torch backend: auto, cpu, cuda or cuda:N.
        seed: of the sample that centroids are trained on.
        code: what the codes look like that an index of codes is to hold; None: the vectors are no codes.
    """

    url: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    folder: Path = Path(".hotrefresh/index")
    shards: int = 1
    nprobe: int | None = None
    ef: int = 100
    rebuild_share: float = 0.3
    device: str = "auto"
    seed: int = 0
    code: CodeShape | None = None


def index_options(settings: Settings, name: str, database_url: str) -> IndexOptions:
    """What the settings say for a backend; a database backend without a URL of its own uses the ledger's."""
    url = settings.index_url or (database_url if name.startswith("pgvector") else None)
    return IndexOptions(
        url=url,
        token=settings.index_token,
        folder=settings.data_dir.absolute() / "index",
        shards=settings.index_shards,
        nprobe=settings.index_nprobe,
        ef=settings.index_ef,
        rebuild_share=settings.index_rebuild_share,
        device=settings.device,
    )


# Name → where its class is, exact or approximate, and what it is. `hotrefresh serve --help` reads this file's text.
BACKENDS: dict[str, tuple[str, str, str]] = {
    "faiss-flat": ("orchestrator.index.faiss_flat:FaissFlat", "exact", "one FAISS matrix in memory"),
    "faiss-ivf": ("orchestrator.index.faiss_ivf:FaissIvf", "approximate", "FAISS inverted lists in memory"),
    "codes": (
        "orchestrator.index.codes:Codes",
        "exact",
        "codes in memory, a few bits a dimension, compared in full",
    ),
    "codes-ivf": (
        "orchestrator.index.codes_ivf:CodesIvf",
        "approximate",
        "codes in inverted lists in memory",
    ),
    "torch": ("orchestrator.index.torch_flat:TorchFlat", "exact", "one matrix on the GPU, or on the CPU"),
    "pgvector": ("orchestrator.index.pgvector:PgVector", "exact", "a table of a PostgreSQL server, scanned"),
    "pgvector-hnsw": (
        "orchestrator.index.pgvector:PgVectorHnsw",
        "approximate",
        "the same with an HNSW graph",
    ),
    "milvus": (
        "orchestrator.index.milvus:Milvus",
        "exact",
        "a Milvus cluster, or milvus-lite in the data folder",
    ),
}

CODED = ("codes", "codes-ivf")
"""Backends of models whose embeddings are codes, and of no others."""


def make_index(
    name: str, vectors: Vectors, options: IndexOptions | None = None, lock: Lock | None = None
) -> VectorIndex:
    """A backend by name, holding a copy of `vectors` (n, dim); loaded only when it is asked for.

    Args:
        lock: the one under which the caller searches and writes. With it a backend whose answers get worse as rows are
            replaced is rebuilt in the background and swapped under it (`orchestrator.index.shadow`).

    Raises:
        UsageError: no such backend, or options that do not fit it.
        UnreachableError: what it needs is not installed, or does not answer.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no index backend {name!r}; there are {', '.join(BACKENDS)}.")
    options = options or IndexOptions()
    if min(options.shards, len(vectors)) > 1:
        from orchestrator.index.sharded import Sharded

        return Sharded(lambda part: _made(name, part, options, lock), vectors, options.shards)
    return _made(name, vectors, options, lock)


def _made(name: str, vectors: Vectors, options: IndexOptions, lock: Lock | None) -> VectorIndex:
    module, kind = BACKENDS[name][0].split(":")
    made = getattr(import_module(module), kind)(vectors, options)
    if lock is not None and hasattr(made, "rebuilt"):
        from orchestrator.index.shadow import Shadowed

        made = Shadowed(made, lock)
    opened: VectorIndex = made
    return opened
