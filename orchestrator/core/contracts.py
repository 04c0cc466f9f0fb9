"""What a downstream module may ask of a new model: the verdict over a measured module, and which modules a rollout would break.

A module (a classification head, a text tower) was trained on one model's embeddings and stays as it is. With `S(m)` its own
metric, 0..1, on the embeddings of model m:

1. Something missing, or a mean of too few values: inconclusive.
2. `S(new) < S(own) - accepted loss`: refused. The reason says whether it may be chance.
3. Where a tolerance is asked for, and the interval of the difference reaches below minus that and the loss: inconclusive.
4. Otherwise certified.

The same rule as for a pair of models (`core.certificate`), and in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.certificate import Verdict
from orchestrator.core.significance import Interval

DEFAULT_MINIMUM = 30
"""A mean of fewer values certifies and refuses nothing."""


@dataclass(frozen=True)
class ModuleMeasurement:
    """A module's metric with its own model's embeddings and with the new one's, of the same `n` pictures or texts.

    `difference`: the 95 % interval of new - old, paired; None where nothing could be measured.
    """

    old: float | None
    new: float | None
    n: int
    difference: Interval | None = None


@dataclass(frozen=True)
class ModuleJudgement:
    """The verdict with its reason, in one sentence without a full stop."""

    verdict: Verdict
    reason: str


def judge_module(
    measured: ModuleMeasurement, minimum: int = DEFAULT_MINIMUM, tolerance: float = 0.0, loss: float = 0.0
) -> ModuleJudgement:
    """See the module. Raises ValueError for a tolerance or a loss outside 0..1."""
    if not (0 <= tolerance <= 1 and 0 <= loss <= 1):
        raise ValueError(f"a tolerance or a loss is a difference of metrics, 0..1, not {tolerance} or {loss}")
    old, new = measured.old, measured.new
    if old is None or new is None or not (math.isfinite(old) and math.isfinite(new)):
        return ModuleJudgement(Verdict.INCONCLUSIVE, "a measurement is missing or is not a finite number")
    if measured.n < minimum:
        return ModuleJudgement(
            Verdict.INCONCLUSIVE, f"it is a mean of {measured.n} values, at least {minimum} are needed"
        )
    accepted = f", and a loss of {loss:g} is accepted" if loss else ""
    scores = f"it scores {new:.4f} with the new model and {old:.4f} with its own{accepted}"
    interval = measured.difference
    if new < old - loss - 1e-12:  # differences of means: not exact
        chance = interval is not None and interval.high >= -loss
        return ModuleJudgement(
            Verdict.REFUSED, scores + (" (which may be chance: more items would tell)" if chance else "")
        )
    if tolerance and interval is None:
        return ModuleJudgement(
            Verdict.INCONCLUSIVE,
            f"no interval of the difference was measured, and a tolerance of {tolerance:g} needs it",
        )
    if tolerance and interval is not None and interval.low < -(tolerance + loss):
        return ModuleJudgement(
            Verdict.INCONCLUSIVE,
            f"{scores}, a difference of {interval.low:+.4f} to {interval.high:+.4f} (95 %): a loss of more than "
            f"{tolerance + loss:g} is not excluded",
        )
    return ModuleJudgement(Verdict.CERTIFIED, scores)


class Obstacle(StrEnum):
    """Why a rollout would break a module."""

    DIM = "dim"
    UNMEASURED = "unmeasured"
    REFUSED = "refused"


@dataclass(frozen=True)
class Contract:
    """One module and what is known of it.

    Attributes:
        space: fingerprint of the model whose embeddings it takes.
        serves: it takes what the gallery holds or serves now: by its own space, or because it is certified for that.
        verdict: of its newest decided certificate for the new model; None: it was never measured with it.
        reason: of that certificate.
    """

    module: str
    space: str
    dim: int
    serves: bool
    verdict: Verdict | None
    reason: str = ""


@dataclass(frozen=True)
class Broken:
    """A module that a rollout would break, and why; `reason` is of its certificate, where it was refused."""

    module: str
    dim: int
    why: Obstacle
    reason: str = ""


def broken(
    contracts: Sequence[Contract], new_space: str, new_dim: int, *, changes_space: bool
) -> list[Broken]:
    """The modules in use that a rollout to a model of this space and dim would break, in their order.

    Args:
        changes_space: the gallery's vectors become the new model's. Where only queries change, and are mapped to where the
            vectors are, a module goes on taking those.
    """
    if not changes_space:
        return []
    found = []
    for each in contracts:
        if not each.serves or each.space == new_space or each.verdict is Verdict.CERTIFIED:
            continue
        if each.dim != new_dim:
            found.append(Broken(each.module, each.dim, Obstacle.DIM))
        elif each.verdict is None:
            found.append(Broken(each.module, each.dim, Obstacle.UNMEASURED))
        else:
            found.append(Broken(each.module, each.dim, Obstacle.REFUSED, each.reason))
    return found
