"""Items and queries as codes: a model's embeddings, encoded by a codec that was made for that model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.artifact import Manifest
from models.codecs.base import Codec
from models.codecs.codes import Vectors

if TYPE_CHECKING:
    from models.encoders import Encoder


class CodedEncoder:
    """An `Encoder` whose vectors are codes, as unit vectors: the base model's embeddings, encoded."""

    def __init__(self, base: Encoder, codec: Codec) -> None:
        self.base, self.codec = base, codec
        self.manifest: Manifest = codec.manifest

    @property
    def dim(self) -> int:
        """Length of the codes."""
        return self.codec.shape.width

    @property
    def modality(self) -> str:
        """The base model's."""
        return self.base.modality

    def preprocess(self, item: Any) -> Any:
        """One item, ready for `encode`."""
        return self.base.preprocess(item)

    def encode(self, prepared: Sequence[Any]) -> Vectors:
        """(n, m) float32: the codes of n items as unit vectors."""
        return unit_codes(self.codec, self.base.encode(prepared))


def unit_codes(codec: Codec, floats: Vectors) -> Vectors:
    """(n, d) float32 embeddings -> (n, m) float32 codes as unit vectors; a row of zeros, an item without a vector, stays one."""
    there = floats.any(axis=1)
    codes = np.zeros((len(floats), codec.shape.width), np.float32)
    if there.any():
        codes[there] = codec.shape.unit(codec.encode(floats[there]))
    return codes
