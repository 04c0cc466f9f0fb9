"""How a codec is trained: one loop for all that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import UsageError
from models.options import above_zero, at_least

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, d) anchors, (B, d) positives and (B,) rows -> the scalar to be lowered."""

OPTIMISERS = ("adamw", "sgd")
_CLIP = 5.0
_DECAY_AT = 0.6  # epoch 6 of 10


@dataclass(frozen=True)
class Descent:
    """Batches of pairs drawn with replacement; gradients cut to a norm of 5; no weight decay of biases and norms.

    Attributes:
        optimiser: "adamw" with warm-up and half-cosine decay, or "sgd" as BEBR has it: Nesterov momentum 0.9, a tenth of
            the learning rate after 60 % of the steps.
        steps, batch_size, learning_rate, weight_decay: of either; a batch is so many pairs.
        noise: standard deviation of Gaussian noise on each coordinate of both sides, which are normalised again.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    noise: float
    optimiser: str

    def __post_init__(self) -> None:
        """Raises UsageError for settings that nothing can be trained with."""
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"unknown optimiser {self.optimiser!r}: choose one of {', '.join(OPTIMISERS)}")
        at_least(1, steps=self.steps)
        at_least(
            2, batch_size=self.batch_size
        )  # of one, batch norm knows no variance, and there is no negative
        above_zero(learning_rate=self.learning_rate)
        at_least(0, noise=self.noise, weight_decay=self.weight_decay)

    def run(
        self,
        network: nn.Module,
        loss: Loss,
        anchors: Tensor,
        positives: Tensor,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Lowers `loss` over the network's parameters, from pairs (n, d) and (n, d)."""
        generator = torch.Generator().manual_seed(seed)
        optimiser, schedule = self._optimiser(network)
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(anchors), (min(self.batch_size, len(anchors)),), generator=generator)
            first, second = (self._moved(side[rows], generator) for side in (anchors, positives))
            value = loss(first, second, rows)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step, self.steps)

    def record(self) -> dict[str, Any]:
        """The settings, for the manifest."""
        return asdict(self)

    def _moved(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        if not self.noise:
            return vectors
        noise = self.noise * torch.randn(vectors.shape, generator=generator)
        return functional.normalize(vectors + noise, dim=1)

    def _optimiser(
        self, network: nn.Module
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        from models.training import learning_rate_at

        weights = [each for each in network.parameters() if each.ndim > 1]
        others = [each for each in network.parameters() if each.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimiser: torch.optim.Optimizer
        shape: Callable[[float], float]
        if self.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9, nesterov=True)
            shape = _stepped
        else:
            optimiser = torch.optim.AdamW(groups, lr=self.learning_rate, foreach=True)
            shape = learning_rate_at
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: shape(step / self.steps))


def _stepped(progress: float) -> float:
    """The factor of BEBR's learning rate at a share of the steps."""
    return 1.0 if progress < _DECAY_AT else 0.1
