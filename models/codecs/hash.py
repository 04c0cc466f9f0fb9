"""One-shot codes: a network and the signs of what it gives. BEBR's control, trained by the same loss.

In the paper's comparison it has three hidden layers of 1536 units and as many bits as the recurrent code.
"""

from __future__ import annotations

from models.artifact import Manifest
from models.codecs import networks
from models.codecs.base import CodecTask
from models.codecs.descent import Descent
from models.errors import UsageError

load = networks.load


def fit(
    task: CodecTask,
    hidden: int = 256,
    layers: int = 1,
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
    """Trains the network and writes the artifact; options as of `models.codecs.recurrent.fit`.

    Raises UsageError for any loops: a code in one shot has none.
    """
    if task.loops:
        raise UsageError(
            f"codec 'hash' makes codes of 1 bit a dimension, so loops must be 0, not {task.loops}: choose a width "
            f"of {task.width * (task.loops + 1)} for as many bits, or the codec recurrent"
        )
    return networks.fit(
        task,
        Descent(steps, batch_size, learning_rate, weight_decay, noise, optimiser),
        hidden=hidden,
        layers=layers,
        residual="released",
        temperature=temperature,
        negatives=negatives,
        old_weight=old_weight,
    )
