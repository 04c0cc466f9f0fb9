"""UniBCT, structural prototype refinement (Zhang et al., "Towards Universal Backward-Compatible Representation Learning",
IJCAI 2022; the formulas as in a re-implementation by others, the paper's code was not available).

Old class means are poor prototypes where the old model never saw the class. Per class y, over its n_y images, the old
embeddings F_o are spread along the likeness of the *new* ones F_n before they are averaged:

    E = softmax_rows( F_n F_n^T / 0.05 ), diagonal left out;   A = 0.1 (I - 0.9 E)^-1;   w_y = mean_i (A F_o)_i

and the term is a(e) CE(W f_n), a = 0 for the first 10 of 35 epochs; W is computed at 10 and again at 20 of 35.
The softmax is by rows: by columns, 1^T A = 1^T, and w_y would be the plain class mean whatever E is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, OldModel, leading_coordinates, no_term
from models.options import above_zero, at_least, share

REFINED_AT = (10 / 35, 20 / 35)
"""Shares of the training after which prototypes are computed anew; before the first there is no term."""


class UniBCT(CompatMethod):
    """The classification by refined old prototypes.

    Args:
        weight: a, once it is not 0.
        temperature: of the softmax over the cosines with the prototypes.
        likeness_temperature: of the softmax over new embeddings of a class.
        keep: 0.9 of the spreading; 0 leaves every image its own old embedding, scaled.
    """

    name = "unibct"
    needs = frozenset({"vectors"})
    prototypes: Tensor
    refinements: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.1,
        likeness_temperature: float = 0.05,
        keep: float = 0.9,
    ) -> None:
        super().__init__()
        above_zero(temperature=temperature, likeness_temperature=likeness_temperature)
        at_least(0, weight=weight)
        share(keep=keep)
        self.weight, self.temperature = weight, temperature
        self.likeness_temperature, self.keep = likeness_temperature, keep

    def prepare(self, old: OldModel, new_dim: int) -> None:
        """Prototypes are buffers: a training that goes on later has them again."""
        count = len(old.knows)
        self.register_buffer("prototypes", torch.zeros(count, old.vectors.shape[1]))
        self.register_buffer("refinements", torch.zeros((), dtype=torch.int64))
        self._old = old

    def begin_pass(self, progress: float, embed: Callable[[], Tensor]) -> None:
        """Refines with the first pass that begins at or after each share of REFINED_AT."""
        due = sum(progress >= share for share in REFINED_AT)
        if due > int(self.refinements):
            found = refined_prototypes(
                embed(),
                self._old.vectors,
                self._old.labels,
                len(self.prototypes),
                self.likeness_temperature,
                self.keep,
            )
            self.prototypes.copy_(functional.normalize(found, dim=1))
            self.refinements.fill_(due)

    def term(self, batch: CompatBatch) -> Tensor:
        """Mean over the batch; zero before the first refinement. With other dims by the first d_o coordinates."""
        if int(self.refinements) == 0:
            return no_term(batch)
        new = leading_coordinates(batch.new, self.prototypes.shape[1])
        logits = new @ self.prototypes.T / self.temperature
        return self.weight * functional.cross_entropy(logits, batch.labels)


def refined_prototypes(
    new: Tensor, old: Tensor, labels: Tensor, count: int, temperature: float = 0.05, keep: float = 0.9
) -> Tensor:
    """(count, d_o): w_y of every class, not normalised; zeros for a class without images.

    Args:
        new, old: (n, d_n) and (n, d_o) float32, L2-normalised embeddings of the same images.
        labels: (n,) int64, 0..count-1.
    """
    found = old.new_zeros(count, old.shape[1])
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels, minlength=count).tolist()
    for label, members in enumerate(torch.split(order, sizes)):
        if len(members):
            found[label] = (spreading(new[members], temperature, keep) @ old[members]).mean(dim=0)
    return found


def spreading(new: Tensor, temperature: float, keep: float) -> Tensor:
    """(m, m): A = (1 - keep) (I - keep E)^-1 of the embeddings (m, d) of one class; an only image keeps to itself."""
    count = len(new)
    identity = torch.eye(count, dtype=new.dtype, device=new.device)
    if count == 1:
        return (1 - keep) * identity
    likeness = (new @ new.T / temperature).masked_fill(identity.bool(), float("-inf"))
    spread = torch.softmax(likeness, dim=1)
    found: Tensor = (1 - keep) * torch.linalg.inv(identity - keep * spread)
    return found
