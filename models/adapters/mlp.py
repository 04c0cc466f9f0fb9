"""The forward adapter psi: R^{d_old} -> R^{d_new}, a linear map plus a residual MLP, with a predicted uncertainty.

After FastFill (Jaeckle et al., "FastFill: Efficient Compatible Model Update", ICLR 2023), with the squared distance summed
over coordinates:

    mean_x [ 1/2 e^{-s} ( ||h - f_n||^2 + D(h) ) + 1/2 s ],    s = log sigma^2 from a linear head, h = psi(f_o) normalised

There D is the label-smoothed cross-entropy of h against the new classifier (`classify`, needs labels and prototypes).
By default D is a contrast within the batch instead, which needs neither: the new embedding f_n must find its own
adapted embedding among those of the batch, `-log softmax_j( f_n,i . h_j / T )_i` (InfoNCE). That is what serving asks
of an adapted gallery: a new model's query has to find the right adapted row.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from models.adapters import networks
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import by_uncertainty, classification, contrast_within, squared_distance
from models.artifact import Manifest
from models.options import at_least

SMOOTHING = 0.1
"""Of the labels, as FastFill has it."""

load = networks.load


def fit(
    task: Task,
    hidden: int = 512,
    depth: int = 2,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.02,
    contrast: float = 1.0,
    classify: float = 0.0,
    temperature: float = 0.1,
) -> Manifest:
    """Fits psi by AdamW and writes its artifact; see `models.adapters.fit_adapter`.

    Args:
        hidden, depth: of the residual MLP.
        steps, batch_size, learning_rate, noise: see `Descent`.
        contrast, classify: weights of the two forms of D.
        temperature: T of either.
    """
    at_least(0, contrast=contrast, classify=classify)
    prototypes = task.classes() if classify else None
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, noise=noise),
        partial(loss, prototypes=prototypes, contrast=contrast, classify=classify, temperature=temperature),
        kind="psi",
        shape={"hidden": hidden, "depth": depth},
        predicts_uncertainty=True,
        training={"contrast": contrast, "classify": classify, "temperature": temperature},
    )


def loss(
    psi: nn.Module,
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    prototypes: Tensor | None,
    contrast: float,
    classify: float,
    temperature: float,
) -> Tensor:
    """The formula above; see `networks.NetworkLoss`."""
    lifted, log_variance = psi(source)
    h = functional.normalize(lifted, dim=1)
    error = squared_distance(h, target)
    if contrast:
        error = error + contrast * contrast_within(h, target, temperature)
    if classify and prototypes is not None:
        error = error + classify * classification(h, prototypes, labels, temperature, SMOOTHING)
    return by_uncertainty(error, log_variance)
