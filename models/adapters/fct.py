"""FCT, forward-compatible training (Ramanujan et al., "Forward Compatible Training for Large-Scale Embedding Retrieval
Systems", CVPR 2022): the transformation alone, `mean_x || h(f_o) - f_n ||^2` with both models frozen.

The paper stores side information with each old embedding and transforms both. Nothing here stores any, so h sees the
embedding alone, and their network's branch for side information is left out (`Recycler`).
"""

from __future__ import annotations

from torch import Tensor, nn

from models.adapters import networks
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import squared_distance
from models.artifact import Manifest

load = networks.load


def fit(
    task: Task,
    inner: int = 512,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
) -> Manifest:
    """Fits h by AdamW and writes its artifact; see `models.adapters.fit_adapter`.

    Args:
        inner: width of the mixer; 2048 in the authors' code.
        steps, batch_size, learning_rate, noise: see `Descent`.
    """
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, noise=noise),
        loss,
        kind="recycler",
        shape={"inner": inner},
        predicts_uncertainty=False,
        training={},
    )


def loss(recycler: nn.Module, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """The formula above; see `networks.NetworkLoss`. Labels are not used."""
    return squared_distance(recycler(source)[0], target).mean()
