"""DMU, darwinian model upgrades (Zhang et al., "Darwinian Model Upgrades: Model Evolving with Selective Compatibility",
AAAI 2023).

Interpretation: only the abstract was available. It says that new models "selectively inherit" from the old one where its
embeddings are discriminative, and that old embeddings of the gallery are "evolved" by a forward adaptation. Here:

    w_i = softmax_c( f_o,i . w_o,c / T )_y,   the old embedding's confidence in its own class
    L_bc(i) = - log softmax_j( f_n,i . f_o,j / tau )_i,   images of i's class masked
    term = a mean_i w_i L_bc(i)  +  b mean_i v_i [ CE(W_n h_i) + || h_i - f_n,i ||^2 ],   h_i = psi(f_o,i) normalised

with v_i = (1 - w_i) / mean(1 - w), so that psi learns most from what the old model placed poorly. Through the squared
distance the new model is drawn to where psi can reach it; the cross-entropy trains psi alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.compat.base import CompatBatch, CompatMethod, OldModel, leading_coordinates
from models.options import above_zero, at_least


class DMU(CompatMethod):
    """Selective backward term and joint forward adaptation.

    Args:
        backward_weight, forward_weight: a and b.
        temperature: tau of the backward contrast, and of the cross-entropy of adapted embeddings.
        confidence_temperature: T.
        hidden, depth: of psi's residual MLP.
    """

    name = "dmu"
    needs = frozenset({"vectors", "head"})

    def __init__(
        self,
        backward_weight: float = 1.0,
        forward_weight: float = 1.0,
        temperature: float = 0.1,
        confidence_temperature: float = 0.05,
        hidden: int = 384,
        depth: int = 2,
    ) -> None:
        super().__init__()
        above_zero(temperature=temperature, confidence_temperature=confidence_temperature)
        at_least(1, hidden=hidden, depth=depth)
        at_least(0, backward_weight=backward_weight, forward_weight=forward_weight)
        self.backward_weight, self.forward_weight = backward_weight, forward_weight
        self.temperature, self.confidence_temperature = temperature, confidence_temperature
        self.hidden, self.depth = hidden, depth

    def prepare(self, old: OldModel, new_dim: int) -> None:
        """Builds psi."""
        from models.adapters.networks import Psi

        self.psi = Psi(old.vectors.shape[1], new_dim, self.hidden, self.depth)

    def forward_module(self) -> nn.Module:
        """psi, trained."""
        return self.psi

    def term(self, batch: CompatBatch) -> Tensor:
        """Both parts. With other dims, new embeddings meet old ones by their first d_o coordinates."""
        old = batch.old.detach()
        with torch.no_grad():
            sure = confidence(old, batch.old_head, batch.labels, self.confidence_temperature)
        backward = (sure * self._contrast(batch, old)).mean()
        return self.backward_weight * backward + self.forward_weight * self._adaptation(batch, old, sure)

    def _contrast(self, batch: CompatBatch, old: Tensor) -> Tensor:
        """(B,) each new embedding must find its own image among the old ones of other classes."""
        scores = leading_coordinates(batch.new, old.shape[1]) @ old.T / self.temperature
        same_class = batch.labels[:, None] == batch.labels[None, :]
        others = same_class & ~torch.eye(len(old), dtype=torch.bool, device=old.device)
        masked = scores.masked_fill(others, float("-inf"))
        return torch.logsumexp(masked, dim=1) - scores.diagonal()

    def _adaptation(self, batch: CompatBatch, old: Tensor, sure: Tensor) -> Tensor:
        lifted = functional.normalize(self.psi(old)[0], dim=1)
        logits = lifted @ batch.new_head.detach().T / self.temperature
        each = functional.cross_entropy(logits, batch.labels, reduction="none")
        each = each + (lifted - batch.new).square().sum(dim=1)
        unsure = 1 - sure
        return (unsure / unsure.mean().clamp_min(1e-6) * each).mean()


def confidence(old: Tensor, head: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """(B,) in 0..1: the probability of its own class for each old embedding (B, d), against the old rows (C, d)."""
    probabilities = torch.softmax(old @ head.T / temperature, dim=1)
    return probabilities.gather(1, labels[:, None])[:, 0]
