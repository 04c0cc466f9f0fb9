"""BEBR's recurrent binary codes: signs, then signs of what they leave, each of half the weight.

See `models.codecs.networks` for the mathematics and `models.codecs.losses` for the loss. The paper's settings are hidden
2048, batch_size 2048, optimiser "sgd", learning_rate 0.08 and weight_decay 1e-3; the defaults are small enough for one CPU.
"""

from __future__ import annotations

from models.artifact import Manifest
from models.codecs import networks
from models.codecs.base import CodecTask
from models.codecs.descent import Descent

load = networks.load


def fit(
    task: CodecTask,
    hidden: int = 256,
    layers: int = 1,
    residual: str = "released",
    steps: int = 400,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-3,
    optimiser: str = "adamw",
    noise: float = 0.03,
    temperature: float = 0.05,
    negatives: int = 5,
    old_weight: float = 1.0,
) -> Manifest:
    """Trains the networks and writes the artifact; see `models.codecs.fit_codec`.

    Args:
        hidden, layers: of each network; 0 hidden units: each is one Linear.
        residual: "released" or "published"; see `networks.Recurrent`.
        steps, batch_size, learning_rate, weight_decay, optimiser, noise: see `Descent`.
        temperature, negatives: τ and K of the loss.
        old_weight: λ of the term towards the old codes; without them it has no effect.
    """
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, weight_decay, noise, optimiser),
        hidden=hidden,
        layers=layers,
        residual=residual,
        temperature=temperature,
        negatives=negatives,
        old_weight=old_weight,
    )
