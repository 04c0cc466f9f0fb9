"""BCT, backward-compatible training (Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020).

Influence loss: `lambda * CE(W_o f_n')`, the new embedding classified by the frozen old head; f_n' = the first d_o
coordinates. Here as a cosine classifier with the temperature of the old model's training.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, leading_coordinates, no_term
from models.errors import UsageError
from models.options import above_zero, at_least


class BCT(CompatMethod):
    """The influence loss.

    Args:
        weight: lambda; 1 in the paper.
        temperature: of the softmax over the old head's cosines.
        unseen: what happens to images of classes that the old model never saw. "leave-out" drops them from this term
            (and their rows from the softmax); "class-means" gives them the mean of their old embeddings as row.
    """

    name = "bct"
    needs = frozenset({"head"})

    def __init__(self, weight: float = 1.0, temperature: float = 0.05, unseen: str = "leave-out") -> None:
        super().__init__()
        above_zero(temperature=temperature)
        at_least(0, weight=weight)
        if unseen not in ("leave-out", "class-means"):
            raise UsageError(f"BCT's unseen cannot be {unseen!r}: choose leave-out or class-means")
        self.weight, self.temperature, self.unseen = weight, temperature, unseen

    def term(self, batch: CompatBatch) -> Tensor:
        """Mean over the images that count; zero when none does."""
        new = leading_coordinates(batch.new, batch.old_head.shape[1])
        logits = new @ batch.old_head.detach().T / self.temperature
        labels = batch.labels
        if self.unseen == "leave-out":
            counts = batch.old_knows[labels]
            if not counts.any():
                return no_term(batch)
            logits = logits.masked_fill(~batch.old_knows, float("-inf"))[counts]
            labels = labels[counts]
        return self.weight * functional.cross_entropy(logits, labels)
