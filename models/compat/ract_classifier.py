"""RACT, classifier form (Zhang et al., ICLR 2022; as in the authors' code).

Cross-entropy over the 2C logits [W_o f_n, W_n f_n without its true class], the target in the old half: an image must
stand nearer to its class as the old model knows it than to any other class, as the old *or the new* model knows them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, leading_coordinates
from models.options import above_zero, at_least


class RACTClassifier(CompatMethod):
    """The regression-alleviating classifier.

    Args:
        weight: of the term; 1 in the authors' code.
        temperature: of the softmax over the cosines with both heads.
    """

    name = "ract_classifier"
    needs = frozenset({"head"})

    def __init__(self, weight: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__()
        above_zero(temperature=temperature)
        at_least(0, weight=weight)
        self.weight, self.temperature = weight, temperature

    def term(self, batch: CompatBatch) -> Tensor:
        """Mean over the batch; classes that the old model never saw stand for themselves by the mean of their old embeddings.

        With other dims, new embeddings meet the old head by their first d_o coordinates. The new head learns along.
        """
        old_head = batch.old_head.detach()
        by_old = leading_coordinates(batch.new, old_head.shape[1]) @ old_head.T
        by_new = (batch.new @ batch.new_head.T).scatter(1, batch.labels[:, None], float("-inf"))
        logits = torch.cat([by_old, by_new], dim=1) / self.temperature
        return self.weight * functional.cross_entropy(logits, batch.labels)
