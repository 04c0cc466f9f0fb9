"""How an adapter is fitted by gradients: one loop for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.options import above_zero, at_least

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, d_old) sources, (B, d_new) targets and (B,) rows -> scalar."""


@dataclass(frozen=True)
class Descent:
    """AdamW with warm-up and half-cosine decay, on batches drawn with replacement.

    Attributes:
        steps, batch_size, learning_rate, weight_decay: of AdamW.
        noise: standard deviation of Gaussian noise on each coordinate of the old embeddings, which are normalised again.
    """

    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    noise: float = 0.02

    def __post_init__(self) -> None:
        """Raises UsageError for settings that nothing can be fitted with."""
        at_least(1, steps=self.steps)
        at_least(2, batch_size=self.batch_size)  # of one, batch norm knows no variance
        above_zero(learning_rate=self.learning_rate)
        at_least(0, noise=self.noise, weight_decay=self.weight_decay)

    def run(
        self,
        parameters: Iterable[nn.Parameter],
        loss: Loss,
        old: np.ndarray,
        new: np.ndarray,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Lowers `loss` over pairs (n, d_old) and (n, d_new) float32."""
        from models.training import learning_rate_at

        sources, targets = torch.from_numpy(old), torch.from_numpy(new)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_at(step / self.steps)
        )
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(sources), (min(self.batch_size, len(sources)),), generator=generator)
            source = sources[rows]
            if self.noise:
                noise = self.noise * torch.randn(source.shape, generator=generator)
                source = functional.normalize(source + noise, dim=1)
            value = loss(source, targets[rows], rows)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step, self.steps)

    def record(self) -> dict[str, Any]:
        """The settings, for the manifest."""
        return asdict(self)
