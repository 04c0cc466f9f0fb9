"""The rows of the table: which new model, and what leads between it and the stored embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Pairs(StrEnum):
    """What an adapter is fitted on; no adapter sees the gallery or a query."""

    NONE = "no adapter"
    PLAIN = "the new model's training pictures"
    COMPOSITES = "composites of the training pictures"
    JOINT = "trained along with the model"


@dataclass(frozen=True)
class Arm:
    """One upgrade path.

    Attributes:
        encoder: the compatible-training method of the new model.
        adapter: name in the registry of adapters; None: new queries meet the stored embeddings as they are.
        backward: the adapter leads new queries into the old space, and the gallery stays as it is.
        weight: of the compatibility term; None: the method's own.
        only: the one data and split on which it is measured; None: everywhere.
    """

    name: str
    encoder: str
    adapter: str | None = None
    pairs: Pairs = Pairs.NONE
    backward: bool = False
    weight: float | None = None
    only: tuple[str, str] | None = None

    @property
    def trained(self) -> str:
        """Which training its new model comes from: arms share them."""
        return self.encoder if self.weight is None else f"{self.encoder} weight {self.weight:g}"


TRAINED = ("bct", "ract", "ract_triplet", "ract_classifier", "unibct", "lce", "advbct")
FORWARD = ("procrustes", "low_rank", "fct", "fastfill", "lambda_orthogonal")
BICT_WEIGHTS = (0.01, 0.3, 1.0)
"""Beside its own of 0.1: the paper finds that the weight of the backward term matters for both directions."""
BACKWARD = ("procrustes", "low_rank", "residual_mlp")

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("independent", "independent"),
        *(Arm(name, name) for name in TRAINED),
        Arm("bict", "bict", "bict", Pairs.PLAIN),
        *(
            Arm(
                f"bict weight {weight:g}",
                "bict",
                "bict",
                Pairs.PLAIN,
                weight=weight,
                only=("glyphs", "open-class"),
            )
            for weight in BICT_WEIGHTS
        ),
        Arm("dmu", "dmu", "mlp", Pairs.JOINT),
        *(Arm(f"independent + {name}", "independent", name, Pairs.PLAIN) for name in FORWARD),
        Arm("independent + mlp", "independent", "mlp", Pairs.COMPOSITES),
        Arm("ract + mlp", "ract", "mlp", Pairs.COMPOSITES),
        *(Arm(f"query-side {name}", "independent", name, Pairs.PLAIN, backward=True) for name in BACKWARD),
    )
}
"""Arm name -> arm, in the order of the table."""


def arms_of(data: str, split: str) -> list[str]:
    """The names of the arms that are measured there."""
    return [name for name, arm in ARMS.items() if arm.only in (None, (data, split))]


METHOD_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    # The old head's rows of classes it never saw are class means of old embeddings, or it would have nothing to say
    # where no class is shared.
    "bct": {"temperature": 0.15, "unseen": "class-means"},
    "ract": {"temperature": 0.1},
}
"""What differs from the registry's recipe; every method has the same main loss, network, data and number of steps."""
