"""Codecs: embeddings of one model become codes of a few bits a dimension, which are an embedding space of their own.

A codec is fitted on embeddings alone, no item is read. A new codec is a new file with `fit(task, **options)` and
`load(manifest, tensors)`, and one line in CODECS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import Manifest
from models.codecs.base import Codec, CodecTask
from models.codecs.codes import MOST_LOOPS, CodeShape
from models.errors import UsageError
from models.options import check_options
from models.registered import load_registered, module_of

CODECS: dict[str, str] = {
    "recurrent": "models.codecs.recurrent",
    "hash": "models.codecs.hash",
    "rotation": "models.codecs.rotation",
}
"""Codec name -> module."""

LEAST_PAIRS = 16
MOST_WIDTH = 2**16
"""Of a vector, as in a manifest."""


def fit_codec(
    method: str,
    anchors: np.ndarray,
    positives: np.ndarray,
    identities: np.ndarray,
    *,
    width: int,
    loops: int,
    old_positives: np.ndarray | None = None,
    folder: Path,
    name: str,
    modality: str,
    source_fingerprint: str,
    seed: int = 0,
    threads: int = 1,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Fits a codec on pairs of embeddings of one model and writes its artifact.

    Args:
        anchors, positives: (n, d) float32, L2-normalised, row by row what belongs together: two items of one class, two
            views of one item, or one embedding twice, which noise tells apart.
        identities: (n,) integers; rows of one identity are never negatives of each other.
        width, loops: dimensions of a code, and its bits a dimension less one.
        old_positives: (n, width) float32, codes of the positives by an old codec, as unit vectors: the new codec is made
            compatible with it, where the method can be.
        source_fingerprint: of the model whose embeddings are encoded.
        options: the method's own.

    Raises UsageError: unknown method or option, too few pairs, arrays that do not fit or are not finite.
    """
    module = module_of(method, "codec", CODECS)
    _check_pairs(anchors, positives, identities)
    if not (1 <= width <= MOST_WIDTH and 0 <= loops <= MOST_LOOPS):
        raise UsageError(
            f"codes have a width of 1 to {MOST_WIDTH} and 0 to {MOST_LOOPS} loops, not {width} and {loops}"
        )
    if old_positives is not None:
        _check_old(old_positives, len(positives), width)
    chosen = dict(options or {})
    check_options(f"codec {method!r}", module.fit, chosen)
    task = CodecTask(
        codec=method,
        anchors=np.ascontiguousarray(anchors, np.float32),
        positives=np.ascontiguousarray(positives, np.float32),
        identities=np.ascontiguousarray(identities, np.int64),
        width=width,
        loops=loops,
        old_positives=None if old_positives is None else np.ascontiguousarray(old_positives, np.float32),
        folder=folder,
        name=name,
        modality=modality,
        identity={"source_fingerprint": source_fingerprint, "source_dim": int(anchors.shape[1])},
        seed=seed,
        threads=threads,
        progress=progress,
    )
    manifest: Manifest = module.fit(task, **chosen)
    return manifest


def _check_pairs(anchors: np.ndarray, positives: np.ndarray, identities: np.ndarray) -> None:
    if anchors.ndim != 2 or anchors.shape != positives.shape:
        raise UsageError(
            f"a codec needs pairs: (n, d) of one model twice, not {anchors.shape} and {positives.shape}"
        )
    if len(anchors) < LEAST_PAIRS:
        raise UsageError(f"{len(anchors)} pairs are too few to fit a codec: give at least {LEAST_PAIRS}")
    if identities.shape != (len(anchors),) or not np.issubdtype(identities.dtype, np.integer):
        raise UsageError(
            f"{len(anchors)} pairs need as many integers as identities, not {identities.dtype} {identities.shape}"
        )
    if not (np.isfinite(anchors).all() and np.isfinite(positives).all()):
        raise UsageError("a codec cannot be fitted: some embeddings are not finite. Embed the items again")


def _check_old(old_positives: np.ndarray, pairs: int, width: int) -> None:
    if old_positives.shape != (pairs, width):
        raise UsageError(
            f"a compatible codec has its old codec's width: old codes of {pairs} pairs are ({pairs}, {width}), "
            f"not {old_positives.shape}"
        )
    if not np.isfinite(old_positives).all():
        raise UsageError("a codec cannot be made compatible: some old codes are not finite")


def load_codec(folder: Path) -> Codec:
    """The codec of an artifact, verified. Raises ArtifactError as `load_registered`."""
    loaded: Codec = load_registered(folder, "codec", CODECS)
    return loaded


__all__ = [
    "CODECS",
    "LEAST_PAIRS",
    "MOST_WIDTH",
    "CodeShape",
    "Codec",
    "CodecTask",
    "fit_codec",
    "load_codec",
]
