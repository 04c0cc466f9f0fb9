"""A residual MLP fitted by the squared distance alone: Drift-Adapter's third kind (2025).

    mean_x || psi(f_o) - f_n ||^2,    psi(f_o) normalised

It stands on the query side there: fitted from the new model to the old one it maps new queries into the old space.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.adapters import networks
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import squared_distance
from models.artifact import Manifest

load = networks.load


def fit(
    task: Task,
    hidden: int = 384,
    depth: int = 2,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
) -> Manifest:
    """Fits psi by AdamW and writes its artifact; see `models.adapters.fit_adapter`.

    Args:
        hidden, depth: of the residual MLP.
        steps, batch_size, learning_rate, noise: see `Descent`.
    """
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, noise=noise),
        loss,
        kind="psi",
        shape={"hidden": hidden, "depth": depth},
        predicts_uncertainty=False,
        training={},
    )


def loss(psi: nn.Module, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """The formula above; see `networks.NetworkLoss`. Labels are not used."""
    return squared_distance(functional.normalize(psi(source)[0], dim=1), target).mean()
