"""LCE (Meng et al., "Learning Compatible Embeddings", ICCV 2021; as in the authors' code, without transformation).

With c_y the old model's normalised class means and b_y the least cosine of an old embedding with its class's:

    a * mean over all coordinates (w_n,y - c_y)^2  +  b * mean_i [ b_y - f_n,i . c_y ]+

Class rows are aligned with the old means, and every new embedding must lie no farther from its old class mean than the
old model's own farthest image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, OldModel, class_means, leading_coordinates
from models.options import at_least


class LCE(CompatMethod):
    """Alignment and boundary.

    Args:
        align: a; 100 in the authors' code (the mean is over coordinates, too, so it is small).
        boundary: b; 1 there.
    """

    name = "lce"
    needs = frozenset({"vectors"})
    centres: Tensor
    boundaries: Tensor

    def __init__(self, align: float = 100.0, boundary: float = 1.0) -> None:
        super().__init__()
        at_least(0, align=align, boundary=boundary)
        self.align, self.boundary = align, boundary

    def prepare(self, old: OldModel, new_dim: int) -> None:
        """(C, d_o) class means and (C,) least cosines of the old embeddings."""
        count = len(old.knows)
        centres = functional.normalize(class_means(old.vectors, old.labels, count), dim=1)
        cosines = (old.vectors * centres[old.labels]).sum(dim=1)
        boundaries = torch.ones(count, device=cosines.device)
        self.register_buffer("centres", centres)
        self.register_buffer("boundaries", boundaries.scatter_reduce(0, old.labels, cosines, "amin"))

    def term(self, batch: CompatBatch) -> Tensor:
        """With other dims, new embeddings and class rows meet the old means by their first d_o coordinates."""
        dim = self.centres.shape[1]
        align = (leading_coordinates(batch.new_head, dim) - self.centres).square().mean()
        cosines = (leading_coordinates(batch.new, dim) * self.centres[batch.labels]).sum(dim=1)
        beyond = (self.boundaries[batch.labels] - cosines).clamp_min(0).mean()
        return self.align * align + self.boundary * beyond
