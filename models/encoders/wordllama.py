"""Text embeddings by wordllama: the mean of its token vectors, any leading dims up to 256, read from the wheel.

The artifact holds no weights: it pins the sha256 of the wheel's file, which is checked at every load. Prefixes of the
vectors are models of their own (the vectors were trained so that a prefix works), which makes 64-d → 256-d a real upgrade.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import Manifest, save_artifact
from models.encoders.wheel import checked_text, pins, read_pinned, wheel_files
from models.errors import ArtifactError, UsageError

MAX_DIMS = 256
_FILES = {
    "weights": "weights/l2_supercat_256.safetensors",
    "tokenizer": "tokenizers/l2_supercat_tokenizer_config.json",
}
_INSTALL = "pip install 'hotrefresh[text]'"


def create(folder: Path, name: str, dims: int) -> Manifest:
    """Write an artifact for the first `dims` dimensions of the installed wheel's model.

    Raises:
        UsageError: dims out of 1..256, or the wheel is not installed.
    """
    if not 1 <= dims <= MAX_DIMS:
        raise UsageError(f"wordllama has {MAX_DIMS} dimensions; {dims} cannot be taken of them.")
    return save_artifact(
        folder,
        {},
        kind="encoder",
        name=name,
        architecture="wordllama",
        options={"dims": dims} | pins(wheel_files("wordllama", _FILES, _INSTALL)),
        modality="text",
        preprocessing={"pooling": "mean"},
        dim=dims,
        training={"method": "published", "source": "wordllama l2_supercat_256"},
    )


def load(manifest: Manifest, tensors: Mapping[str, Any]) -> WordLlama:
    """The encoder of a manifest.

    Raises:
        ArtifactError: the installed wheel is missing or another one than the manifest pins.
        ValueError: the manifest's dimensions contradict each other.
    """
    if manifest.options["dims"] != manifest.dim or manifest.dim > MAX_DIMS:
        raise ValueError(f"dims {manifest.options['dims']!r}, dim {manifest.dim}, at most {MAX_DIMS}")
    try:
        paths = wheel_files("wordllama", _FILES, _INSTALL)
    except UsageError as missing:
        raise ArtifactError(str(missing)) from missing
    files = read_pinned(paths, manifest.options)
    return WordLlama(manifest, files["weights"], files["tokenizer"])


class WordLlama:
    """Mean of token vectors, L2-normalised."""

    modality = "text"

    def __init__(self, manifest: Manifest, weights: bytes, tokenizer: bytes) -> None:
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        self.manifest = manifest
        self._table = load(weights)["embedding.weight"].astype(np.float32)[:, : manifest.dim]
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.dim

    def preprocess(self, item: Any) -> str:
        """A text, checked. Raises ItemError for an empty or an overlong one."""
        return checked_text(item)

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised."""
        vectors = np.zeros((len(prepared), self.dim), np.float32)
        for place, tokens in enumerate(
            self._tokenizer.encode_batch(list(prepared), add_special_tokens=False)
        ):
            if tokens.ids:
                vectors[place] = self._table[tokens.ids].mean(axis=0)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(norms, 1e-12)
        return vectors
