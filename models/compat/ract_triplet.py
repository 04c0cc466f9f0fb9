"""RACT, triplet form (Zhang et al., ICLR 2022; as in the authors' code).

With D the Euclidean distance of L2-normalised embeddings, o_i and n_i the same image by the old and the new model, and j
over the 10 nearest images of other classes in the batch, of either kind:

    mean_ij [ m + D(n_i, o_i) - D(n_i, o_j) ]+  +  mean_ij [ m + D(n_i, o_i) - D(n_i, n_j) ]+
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.compat.base import CompatBatch, CompatMethod, hardest_negatives, leading_coordinates
from models.options import at_least


class RACTTriplet(CompatMethod):
    """The regression-alleviating triplets.

    Args:
        weight: of the term; 1 in the authors' code.
        margin: m; 0.8 there.
        hardest: negatives of each kind; 10 there.
    """

    name = "ract_triplet"
    needs = frozenset({"vectors"})

    def __init__(self, weight: float = 1.0, margin: float = 0.8, hardest: int = 10) -> None:
        super().__init__()
        at_least(1, hardest=hardest)
        at_least(0, weight=weight, margin=margin)
        self.weight, self.margin, self.hardest = weight, margin, hardest

    def term(self, batch: CompatBatch) -> Tensor:
        """Both means, a missing negative counting as one that is far enough.

        With other dims, new embeddings meet old ones by their first d_o coordinates, which are not normalised again.
        """
        old = batch.old.detach()
        new = leading_coordinates(batch.new, old.shape[1])
        cross, within = torch.cdist(new, old), torch.cdist(batch.new, batch.new)
        positive = cross.diagonal()[:, None]
        total = batch.new.new_zeros(())
        for distances in (cross, within):
            nearest = -hardest_negatives(-distances, batch.labels, self.hardest)
            total = total + (self.margin + positive - nearest).clamp_min(0).mean()
        return self.weight * total
