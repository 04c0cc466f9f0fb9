"""RACT, regression-alleviating compatible training, contrastive form (Zhang et al., "Hot-Refresh Model Upgrades with
Regression-Alleviating Compatible Training in Image Retrieval", ICLR 2022).

For image i with p_i = f_n,i . f_o,i (the same image by both models):

    - mean_i log( e^{p_i/tau} / Z_i ),
    Z_i = e^{p_i/tau} + sum_{j in K_o(i)} e^{f_n,i . f_o,j / tau} + sum_{j in K_n(i)} e^{f_n,i . f_n,j / tau}

K_o(i) and K_n(i): the hardest negatives of each kind in the batch, images of i's class masked. The new-to-new negatives
are what sets it apart from plain compatible training: an old positive must stand above *refreshed* negatives too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.compat.base import CompatBatch, CompatMethod, hardest_negatives, leading_coordinates
from models.options import above_zero, at_least


class RACT(CompatMethod):
    """The contrastive regression-alleviating term.

    Args:
        weight: of the term; 1 in the authors' code.
        temperature: tau; 0.01 there.
        hardest: negatives of each kind that count; 10 there.
    """

    name = "ract"
    needs = frozenset({"vectors"})

    def __init__(self, weight: float = 1.0, temperature: float = 0.01, hardest: int = 10) -> None:
        super().__init__()
        above_zero(temperature=temperature)
        at_least(1, hardest=hardest)
        at_least(0, weight=weight)
        self.weight, self.temperature, self.hardest = weight, temperature, hardest

    def term(self, batch: CompatBatch) -> Tensor:
        """Mean over the batch. With other dims, new embeddings meet old ones by their first d_o coordinates."""
        old = batch.old.detach()
        new = leading_coordinates(batch.new, old.shape[1])
        cross = new @ old.T / self.temperature
        within = batch.new @ batch.new.T / self.temperature
        positive = cross.diagonal()[:, None]
        negatives = [hardest_negatives(scores, batch.labels, self.hardest) for scores in (cross, within)]
        logits = torch.cat([positive, *negatives], dim=1)
        return self.weight * (torch.logsumexp(logits, dim=1) - positive[:, 0]).mean()
