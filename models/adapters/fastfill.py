"""FastFill (Jaeckle et al., "FastFill: Efficient Compatible Model Update", ICLR 2023):

    mean_x [ 1/2 e^{-s} ( || h - f_n ||^2 / d_new + CE_0.1(W_n h) ) + 1/2 s ],    s = log sigma^2 from a linear head on h

with FCT's network for h, the new model's classifier W_n and label smoothing 0.1. As in the authors' code the squared distance
is a mean over coordinates, and W_n sees h as it is, not normalised; W_n is a cosine classifier here, so its logits are
divided by the temperature of the new model's training. s orders the refresh: the least certain first.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.adapters import networks
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import by_uncertainty, classification
from models.artifact import Manifest

SMOOTHING = 0.1

load = networks.load


def fit(
    task: Task,
    inner: int = 512,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
    temperature: float = 0.1,
) -> Manifest:
    """Fits h and s by AdamW and writes the artifact; see `models.adapters.fit_adapter`. Needs prototypes and labels.

    Args:
        inner: width of the mixer; 2048 in FCT's code.
        steps, batch_size, learning_rate, noise: see `Descent`.
        temperature: of the softmax over cosines with W_n.
    """
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, noise=noise),
        partial(loss, prototypes=task.classes(), temperature=temperature),
        kind="recycler",
        shape={"inner": inner},
        predicts_uncertainty=True,
        training={"temperature": temperature},
    )


def loss(
    recycler: nn.Module,
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    prototypes: Tensor,
    temperature: float,
) -> Tensor:
    """The formula above; see `networks.NetworkLoss`."""
    h, log_variance = recycler(source)
    distance = (h - target).square().mean(dim=1)
    return by_uncertainty(
        distance + classification(h, prototypes, labels, temperature, SMOOTHING), log_variance
    )
