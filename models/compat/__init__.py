"""Compatible training: one file a method, each a term that is added to the classification loss.

A new method is a new file with a class like the three here and one line in METHODS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from models.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

METHODS: dict[str, str] = {
    "independent": "models.compat.independent:Independent",
    "bct": "models.compat.bct:BCT",
    "ract": "models.compat.ract:RACT",
}
"""Method name -> module:class."""


@dataclass(frozen=True)
class CompatBatch:
    """What a method sees of one training batch.

    Attributes:
        new: (B, d_n) float32, L2-normalised, by the model in training; carries gradients.
        labels: (B,) int64, 0..C-1.
        old: (B, d_o) float32, L2-normalised, the frozen old model's embeddings of the same images; empty (B, 0) unless
            the method's `needs` says "vectors".
        old_head: (C, d_o) float32, L2-normalised, the frozen old classifier's row of each class; rows without an old class
            are class means of old embeddings; empty (C, 0) unless `needs` says "head".
        old_knows: (C,) bool, True where the old model was trained on the class.
    """

    new: Tensor
    labels: Tensor
    old: Tensor
    old_head: Tensor
    old_knows: Tensor


class CompatMethod(Protocol):
    """One way to train a model whose queries can search an older model's gallery."""

    name: str
    needs: frozenset[str]
    """What of the old model it uses: "vectors", "head", both or nothing."""

    def term(self, batch: CompatBatch) -> Tensor:
        """The scalar that is added to the classification loss, its weight included. No gradient reaches the old model."""


def create_method(name: str, options: Mapping[str, Any] | None = None) -> CompatMethod:
    """The method by name, built with `options`. Raises UsageError for an unknown name or option."""
    if name not in METHODS:
        raise UsageError(f"unknown compatible-training method {name!r}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    try:
        method: CompatMethod = getattr(importlib.import_module(module), attribute)(**(options or {}))
    except TypeError as error:
        raise UsageError(f"method {name!r} cannot take {dict(options or {})}: {error}") from error
    return method


def leading_coordinates(vectors: Tensor, dim: int) -> Tensor:
    """(B, dim): the first `dim` coordinates, padded with zeros where the vectors are shorter."""
    from torch.nn import functional

    return functional.pad(vectors[:, :dim], (0, max(0, dim - vectors.shape[1])))
