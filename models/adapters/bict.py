"""BiCT's forward half (Su et al., "Privacy-Preserving Model Upgrades with Bidirectional Compatible Training in Image
Retrieval", 2022): stored embeddings are lifted, and no gallery image is read.

    mean_x [ || psi(f_o) - f_n ||^2  +  classify CE(W_n psi(f_o)) ],    psi(f_o) normalised

Interpretation: only the abstract was available, which says that old gallery embeddings are "upgraded" by "forward
compatible training"; here a residual MLP, with both models frozen. Adapters of consecutive upgrades chain: v1 reaches v3
through two of them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from models.adapters import networks
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import classification, squared_distance
from models.artifact import Manifest
from models.options import at_least

load = networks.load


def fit(
    task: Task,
    hidden: int = 384,
    depth: int = 2,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
    classify: float = 1.0,
    temperature: float = 0.1,
) -> Manifest:
    """Fits psi by AdamW and writes its artifact; see `models.adapters.fit_adapter`. Needs prototypes and labels.

    Args:
        hidden, depth: of the residual MLP.
        steps, batch_size, learning_rate, noise: see `Descent`.
        classify: weight of the classification; temperature: of its softmax over cosines.
    """
    at_least(0, classify=classify)
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, noise=noise),
        partial(loss, prototypes=task.classes(), classify=classify, temperature=temperature),
        kind="psi",
        shape={"hidden": hidden, "depth": depth},
        predicts_uncertainty=False,
        training={"classify": classify, "temperature": temperature},
    )


def loss(
    psi: nn.Module,
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    prototypes: Tensor,
    classify: float,
    temperature: float,
) -> Tensor:
    """The formula above; see `networks.NetworkLoss`."""
    h = functional.normalize(psi(source)[0], dim=1)
    discrimination = classification(h, prototypes, labels, temperature)
    return (squared_distance(h, target) + classify * discrimination).mean()
