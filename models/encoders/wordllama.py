"""Text embeddings by wordllama: the mean of its token vectors, any leading dims up to 256, read from the wheel.

The artifact holds no weights: it pins the sha256 of the wheel's file, which is checked at every load. Prefixes of the
vectors are models of their own (the vectors were trained so that a prefix works), which makes 64-d → 256-d a real upgrade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import Manifest, save_artifact
from models.errors import ArtifactError, ItemError, UsageError

MAX_DIMS = 256
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_MAX_CHARACTERS = 100_000


def create(folder: Path, name: str, dims: int) -> Manifest:
    """Write an artifact for the first `dims` dimensions of the installed wheel's model.

    Raises:
        UsageError: dims out of 1..256, or the wheel is not installed.
    """
    if not 1 <= dims <= MAX_DIMS:
        raise UsageError(f"wordllama has {MAX_DIMS} dimensions; {dims} cannot be taken of them.")
    weights, tokenizer = _files()
    return save_artifact(
        folder,
        {},
        kind="encoder",
        name=name,
        architecture="wordllama",
        options={"dims": dims, "weights_sha256": _sha256(weights), "tokenizer_sha256": _sha256(tokenizer)},
        modality="text",
        preprocessing={"pooling": "mean"},
        dim=dims,
        training={"method": "published", "source": "wordllama l2_supercat_256"},
    )


def load(manifest: Manifest, tensors: Mapping[str, Any]) -> WordLlama:
    """The encoder of a manifest.

    Raises:
        ArtifactError: the installed wheel is missing or another one than the manifest pins.
    """
    try:
        weights, tokenizer = _files()
    except UsageError as missing:
        raise ArtifactError(str(missing)) from missing
    for path, key in ((weights, "weights_sha256"), (tokenizer, "tokenizer_sha256")):
        if _sha256(path) != manifest.options[key]:
            raise ArtifactError(
                f"{path.name} of the installed wordllama is not the file this model was made with; "
                "install that version of wordllama, or import the model again under another name."
            )
    return WordLlama(manifest, weights, tokenizer)


class WordLlama:
    """Mean of token vectors, L2-normalised."""

    def __init__(self, manifest: Manifest, weights: Path, tokenizer: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.manifest = manifest
        self._table = load_file(weights)["embedding.weight"].astype(np.float32)[:, : manifest.dim]
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def modality(self) -> str:
        return "text"

    def preprocess(self, item: Any) -> str:
        """A text, checked. Raises ItemError for an empty or an overlong one."""
        if not isinstance(item, str):
            raise ItemError("wrong_kind", "this model embeds texts, the item is a picture.")
        if not item.strip():
            raise ItemError("empty", "the text is empty.")
        if len(item) > _MAX_CHARACTERS:
            raise ItemError(
                "too_large", f"the text has {len(item)} characters; the limit is {_MAX_CHARACTERS}."
            )
        return item

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


def _files() -> tuple[Path, Path]:
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise UsageError("wordllama is not installed: pip install 'hotrefresh[text]'.")
    root = Path(next(iter(found.submodule_search_locations)))
    if not (root / _WEIGHTS).is_file():
        raise UsageError(f"the installed wordllama has no {_WEIGHTS}: pip install 'wordllama>=0.3'.")
    return root / _WEIGHTS, root / _TOKENIZER


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
