"""The terms that adapters are fitted by: each gives one value a pair, (B,)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def squared_distance(lifted: Tensor, target: Tensor) -> Tensor:
    """(B,) squared Euclidean distances of (B, d) and (B, d)."""
    return (lifted - target).square().sum(dim=1)


def classification(
    h: Tensor, prototypes: Tensor, labels: Tensor, temperature: float, smoothing: float = 0.0
) -> Tensor:
    """(B,) cross-entropy of h (B, d) against the rows (C, d) of a classifier, its labels smoothed; 0 where a label (B,) is -1.

    `temperature` is that of the softmax over the rows, which are L2-normalised.
    """
    return functional.cross_entropy(
        h @ prototypes.T / temperature,
        labels,
        reduction="none",
        ignore_index=-1,
        label_smoothing=smoothing,
    )


def contrast_within(h: Tensor, new: Tensor, temperature: float) -> Tensor:
    """(B,) InfoNCE: each new embedding against all adapted ones of the batch, its own being right."""
    logits = new @ h.T / temperature
    return functional.cross_entropy(logits, torch.arange(len(h)), reduction="none")


def by_uncertainty(error: Tensor, log_variance: Tensor) -> Tensor:
    """FastFill's mean_x [ 1/2 e^{-s} error + 1/2 s ], a scalar from (B,) errors and s = log sigma^2 (B,).

    It is least where sigma^2 is the error that is to be expected (Jaeckle et al., ICLR 2023).
    """
    return (0.5 * torch.exp(-log_variance) * error + 0.5 * log_variance).mean()
