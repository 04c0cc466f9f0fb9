"""AdvBCT (Pan et al., "Boundary-Aware Backward-Compatible Representation via Adversarial Learning in Image Retrieval",
CVPR 2023; as in the authors' code).

A discriminator learns to tell new embeddings from old ones; its gradient reaches the new model reversed, growing as
2 / (1 + e^(-10 p)) - 1 with the share p of the training, while the loss itself is faded out by 1 - p. An elastic boundary
keeps each new embedding within a radius of its old class mean c_y,

    mean over those beyond it of || f_n - c_y || - R_y,    R_y = r_y ± sigmoid(u_y) | r_y - t |

r_y the distance of the class's farthest old embedding, u_y learned; + where r_y lies under the threshold t, - above.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, OldModel, class_means, leading_coordinates
from models.options import at_least, share


class AdvBCT(CompatMethod):
    """Adversary and elastic boundary.

    Args:
        adversary, boundary: weights of the two parts; 1 in the authors' code.
        threshold: t; 0.5 there.
        width, depth, dropout: of the discriminator; 256, 5 layers and 0.2 there.
    """

    name = "advbct"
    needs = frozenset({"vectors"})
    centres: Tensor
    radii: Tensor

    def __init__(
        self,
        adversary: float = 1.0,
        boundary: float = 1.0,
        threshold: float = 0.5,
        width: int = 256,
        depth: int = 5,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        at_least(1, width=width)
        at_least(0, adversary=adversary, boundary=boundary)
        at_least(2, depth=depth)
        share(dropout=dropout)
        self.adversary, self.boundary, self.threshold = adversary, boundary, threshold
        self.width, self.depth, self.dropout = width, depth, dropout

    def prepare(self, old: OldModel, new_dim: int) -> None:
        """Class means, radii, and what is trained along: the discriminator and the elasticity of each class."""
        count, dim = len(old.knows), old.vectors.shape[1]
        centres = class_means(old.vectors, old.labels, count)
        distances = (old.vectors - centres[old.labels]).norm(dim=1)
        radii = torch.zeros(count, device=distances.device).scatter_reduce(0, old.labels, distances, "amax")
        self.register_buffer("centres", centres)
        self.register_buffer("radii", radii)
        self.elasticity = nn.Parameter(torch.empty(count).uniform_(-1, 1))
        layers: list[nn.Module] = [nn.Linear(dim, self.width), nn.Dropout(self.dropout)]
        for _ in range(self.depth - 2):
            layers += [nn.Linear(self.width, self.width), nn.BatchNorm1d(self.width), nn.ReLU(True)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(self.width, 2))

    def term(self, batch: CompatBatch) -> Tensor:
        """With other dims, new embeddings meet old ones by their first d_o coordinates."""
        old = batch.old.detach()
        new = leading_coordinates(batch.new, old.shape[1])
        return self.adversary * self._tell_apart(new, old, batch.progress) + self.boundary * self._beyond(
            new, batch.labels
        )

    def _tell_apart(self, new: Tensor, old: Tensor, progress: float) -> Tensor:
        strength = 2 / (1 + math.exp(-10 * progress)) - 1
        reversed_new: Tensor = _Reversed.apply(new, strength)  # type: ignore[no-untyped-call]
        scores = [self.discriminator(vectors) for vectors in (reversed_new, old)]
        total = sum(
            (
                functional.cross_entropy(score, torch.full((len(score),), who, device=score.device))
                for who, score in enumerate(scores)
            ),
            new.new_zeros(()),
        )
        return (1 - progress) * total

    def _beyond(self, new: Tensor, labels: Tensor) -> Tensor:
        reach = torch.sigmoid(self.elasticity) * (self.radii - self.threshold).abs()
        radii = torch.where(self.radii < self.threshold, self.radii + reach, self.radii - reach)
        beyond = (new - self.centres[labels]).norm(dim=1) - radii[labels]
        outside = beyond > 0
        return beyond[outside].mean() if bool(outside.any()) else new.new_zeros(())


class _Reversed(torch.autograd.Function):
    """The same values; gradients times `-strength` (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None
