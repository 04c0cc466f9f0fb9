"""What an adapted encoder is trained by: to say what the old one says, and to stay near the old texts.

    L = mean ||f(x) - phi_o(x)||^2 + lambda * 1/2 [ CE(f(x_i) . g(t_j) / tau) + CE(g(t_i) . f(x_j) / tau) ]

f, phi_o and the texts' g are as a gallery holds them: L2-normalised. The contrast pairs the **new** picture with the
**old** text, whose tower is frozen. With lambda 0 no text is looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.adapters.losses import squared_distance


def taca_loss(
    adapted: Tensor,
    old: Tensor,
    texts: Tensor | None,
    *,
    contrast: float,
    temperature: float,
    same: Tensor | None = None,
) -> Tensor:
    """The formula above, a scalar.

    Args:
        adapted, old: (B, d_o) float32, L2-normalised: f(x) and phi_o(x) of the same pictures.
        texts: (B, d_o) float32, L2-normalised: the old text feature of each picture; not needed where `contrast` is 0.
        contrast: lambda.
        temperature: tau.
        same: see `cross_model_contrast`.

    Raises ValueError where there are no texts to contrast with.
    """
    distillation = squared_distance(adapted, old).mean()
    if contrast == 0:
        return distillation
    if texts is None:
        raise ValueError(f"a contrast of weight {contrast} needs texts")
    return distillation + contrast * cross_model_contrast(adapted, texts, temperature, same)


def cross_model_contrast(
    pictures: Tensor, texts: Tensor, temperature: float, same: Tensor | None = None
) -> Tensor:
    """Half the cross-entropies of finding the text of each picture and the picture of each text among the batch's.

    Args:
        pictures, texts: (B, d), row by row a pair.
        same: (B,) int64, equal where two pairs have the same text: they are no negatives of each other.
    """
    logits = pictures @ texts.T / temperature
    if same is not None:
        own = torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill((same[:, None] == same[None]) & ~own, float("-inf"))
    right = torch.arange(len(logits), device=logits.device)
    found: Tensor = functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)
    return found / 2
