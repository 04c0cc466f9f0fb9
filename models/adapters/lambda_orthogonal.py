"""An affine map under a relaxed orthogonality constraint (Ricci et al., "λ-Orthogonality Regularization for Compatible
Representation Learning", 2025).

Interpretation: only the abstract was available. It says that "a relaxed orthogonality constraint" is imposed "while
learning an affine transformation", to adapt without altering the representation. Here, with G = W^T W or W W^T, whichever
is smaller:

    mean_x || normalised(x W + b) - f_n ||^2  +  weight [ || G - I ||_F - lambda ]+

so that W may leave the orthogonal matrices by lambda at no cost.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.adapters import affine
from models.adapters.base import Task
from models.adapters.descent import Descent
from models.adapters.losses import squared_distance
from models.artifact import Manifest
from models.options import at_least

load = affine.load


def fit(
    task: Task,
    tolerance: float = 1.0,
    weight: float = 1.0,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
) -> Manifest:
    """Fits W and b by AdamW and writes the artifact; see `models.adapters.fit_adapter`.

    Args:
        tolerance: lambda.
        weight: of the penalty.
        steps, batch_size, learning_rate, noise: see `Descent`.
    """
    from models.training import fixed_threads

    at_least(0, tolerance=tolerance, weight=weight)
    started = time.monotonic()
    descent = Descent(steps, batch_size, learning_rate, weight_decay=0.0, noise=noise)
    with fixed_threads(task.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        matrix = nn.Parameter(torch.empty(task.old.shape[1], task.new.shape[1]))
        nn.init.orthogonal_(matrix)
        bias = nn.Parameter(torch.zeros(task.new.shape[1]))

        def on_rows(source: Tensor, target: Tensor, rows: Tensor) -> Tensor:
            return loss(matrix, bias, source, target, tolerance=tolerance, weight=weight)

        descent.run([matrix, bias], on_rows, task.old, task.new, task.seed, task.progress)
    return affine.save(
        task.folder,
        task.old,
        task.new,
        matrix=matrix.detach().numpy(),
        source_mean=np.zeros(task.old.shape[1], np.float32),
        target_mean=bias.detach().numpy(),
        training={
            **descent.record(),
            "lambda": tolerance,
            "weight": weight,
            "seed": task.seed,
            "seconds": round(time.monotonic() - started, 2),
        },
        **task.artifact,
    )


def loss(
    matrix: Tensor, bias: Tensor, source: Tensor, target: Tensor, *, tolerance: float, weight: float
) -> Tensor:
    """The formula above: a scalar from W (d_old, d_new), b (d_new,), sources (B, d_old) and targets (B, d_new)."""
    lifted = functional.normalize(source @ matrix + bias, dim=1)
    return squared_distance(lifted, target).mean() + weight * beyond_orthogonal(matrix, tolerance)


def beyond_orthogonal(matrix: Tensor, tolerance: float) -> Tensor:
    """How far the (d_old, d_new) matrix's smaller Gram matrix is from the identity beyond `tolerance`, Frobenius; 0 within."""
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    distance = torch.linalg.matrix_norm(gram - torch.eye(len(gram)))
    beyond: Tensor = (distance - tolerance).clamp_min(0)
    return beyond
