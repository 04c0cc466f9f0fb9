"""Features that somebody stored: an item's vector is its row of FOLDER/features/ENCODER/VID.npy, perhaps under a linear map.

The artifact holds no features. It names the encoder and pins its dim and, where there is one, the map; that the rows are what
they were, it cannot say: whoever writes them anew under the same name makes other vectors of the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.artifact import Manifest, save_artifact
from models.datasets import list_items, read_item
from models.datasets.embeddings_file import map_embeddings
from models.datasets.ptvd import Ptvd
from models.datasets.ptvd_features import encoders
from models.datasets.ptvd_source import PlotSegment, episodes_of
from models.errors import ItemError, UsageError

if TYPE_CHECKING:
    from models.encoders import Encoder

RIDGE = 1e-2
"""Of the map, as a share of the mean square of the features."""


def create(
    folder: Path, name: str, encoder: str, source: str, split: str | None, into: Encoder | None
) -> Manifest:
    """Write the artifact of an encoder's features.

    Args:
        source: `ptvd:FOLDER`, whose features say the dim.
        into: the map leads into this encoder's space, fitted by ridge regression on the segments of `split` alone; None: none.

    Raises:
        UsageError: no such source or features, or too few segments to fit on.
    """
    if not source.startswith("ptvd:"):
        raise UsageError(f"{source[:200]!r} holds no features; name ptvd:FOLDER.")
    dataset = Ptvd(Path(source.partition(":")[2]))
    if encoder not in encoders(dataset):
        known = ", ".join(encoders(dataset)) or "none"
        raise UsageError(f"there are no features of {encoder[:80]!r} in {dataset.folder}; there are {known}.")
    tensors: dict[str, torch.Tensor] = {}
    training: dict[str, Any] = {"method": "published", "source": f"features of {encoder}"}
    dim = _width(dataset, encoder)
    options = {"encoder": encoder, "width": dim}
    if into is not None:
        segments = [read_item(item.uri) for item in list_items(source, split).items]
        new = np.stack([_row(each, encoder, dim) for each in segments])
        old = into.encode([into.preprocess(each) for each in segments])
        tensors["map"] = torch.from_numpy(ridge(new, old))
        dim = into.dim
        training = {
            "method": "ridge regression",
            "into": into.manifest.name,
            "segments": len(segments),
            "episodes": episodes_of(source, split),
        }
    return save_artifact(
        folder,
        tensors,
        kind="encoder",
        name=name,
        architecture="stored_features",
        options=options,
        modality="video",
        preprocessing={},
        dim=dim,
        training=training,
    )


def ridge(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """(d_new, d_old) float32: the linear map that takes (n, d_new) nearest to (n, d_old), by RIDGE.

    Raises UsageError for fewer rows than 2.
    """
    if len(new) < 2:
        raise UsageError(f"a map cannot be fitted on {len(new)} segments; name a larger split.")
    x, y = new.astype(np.float64), old.astype(np.float64)
    gram = x.T @ x
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram + penalty, x.T @ y).astype(np.float32)


def load(manifest: Manifest, tensors: Mapping[str, Any]) -> StoredFeatures:
    """The encoder of a manifest. Raises ValueError where its parts do not fit together."""
    width = int(manifest.options["width"])
    mapped = tensors.get("map")
    shape = (width, manifest.dim)
    if (tuple(mapped.shape) if mapped is not None else (manifest.dim, manifest.dim)) != shape:
        raise ValueError(f"features of {width} dims and a map do not make {manifest.dim}")
    return StoredFeatures(manifest, None if mapped is None else mapped.numpy())


class StoredFeatures:
    """Rows of files, mapped, L2-normalised."""

    modality = "video"

    def __init__(self, manifest: Manifest, mapped: np.ndarray | None) -> None:
        self.manifest = manifest
        self._map = mapped
        self._encoder, self._width = str(manifest.options["encoder"]), int(manifest.options["width"])

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.dim

    def preprocess(self, item: Any) -> np.ndarray:
        """(width,) float32, a segment's row.

        Raises ItemError for anything but a segment of PTVD, and where its features are missing, not finite or zero.
        """
        return _row(item, self._encoder, self._width)

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised."""
        rows = np.stack(list(prepared)) if len(prepared) else np.zeros((0, self._width), np.float32)
        vectors = rows if self._map is None else rows @ self._map
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _row(item: Any, encoder: str, width: int) -> np.ndarray:
    if not isinstance(item, PlotSegment):
        raise ItemError(
            "unsupported", "stored features are of plot segments (ptvd:FOLDER), and of nothing else."
        )
    path = item.folder / "features" / encoder / f"{item.segment.episode}.npy"
    try:
        changed_ns = path.stat().st_mtime_ns
    except (OSError, ValueError) as error:
        raise ItemError("missing", f"there are no features {path}.") from error
    try:
        rows = _file(path, changed_ns)
    except UsageError as error:
        raise ItemError("corrupt", str(error)) from error
    if rows.shape[1] != width or item.segment.index >= len(rows):
        raise ItemError(
            "corrupt", f"{path} is {rows.shape}; segment {item.segment.key} needs a row of {width}."
        )
    row = np.asarray(rows[item.segment.index], np.float32)
    if not np.isfinite(row).all() or not row.any():
        raise ItemError("corrupt", f"{path} has a row for {item.segment.key} that is not finite, or zero.")
    return row


@lru_cache(maxsize=256)
def _file(path: Path, changed_ns: int) -> np.ndarray:
    del changed_ns
    return map_embeddings(path)


def _width(dataset: Ptvd, encoder: str) -> int:
    files = sorted((dataset.folder / "features" / encoder).glob("*.npy"))
    if not files:
        raise UsageError(f"{dataset.folder} has no feature file of {encoder}.")
    return int(map_embeddings(files[0]).shape[1])
