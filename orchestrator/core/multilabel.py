"""Metrics where a thing has several labels or none, such as genres: mean average precision, micro and macro F1.

Average precision of a label: sum over falling thresholds t of (R(t) - R(t-1)) * P(t); equal scores are one threshold. Labels that
nothing has are left out of its mean and counted. F1 = 2 TP / (2 TP + FP + FN): micro of the summed counts, macro as the mean
over labels; a label that nothing has and nothing was given is left out of that mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Multilabel:
    """Of `n` things.

    Attributes:
        mean_average_precision: None when no label has a thing.
        average_precisions: one a label; None where nothing has it.
        micro_f1, macro_f1: None where nothing has a label and nothing was given one.
        unused: labels that nothing has.
    """

    n: int
    mean_average_precision: float | None
    average_precisions: tuple[float | None, ...]
    micro_f1: float | None
    macro_f1: float | None
    unused: int


def multilabel(truth: npt.ArrayLike, scores: npt.ArrayLike, *, threshold: float = 0.5) -> Multilabel:
    """Compare scores with the truth.

    Args:
        truth: (n, labels) bool.
        scores: (n, labels) real numbers; a label is given from `threshold` on.

    Raises:
        ValueError: other shapes, truth that is not bool, scores that are not finite.
    """
    true, said = np.asarray(truth), np.asarray(scores, np.float64)
    if true.dtype != np.bool_ or true.ndim != 2 or true.shape != said.shape:
        raise ValueError(
            f"truth {true.shape} {true.dtype} and scores {said.shape} must be (n, labels), truth bool"
        )
    if not np.isfinite(said).all():
        raise ValueError("scores must be finite")
    aps = tuple(average_precision(true[:, at], said[:, at]) for at in range(true.shape[1]))
    known = [ap for ap in aps if ap is not None]
    given = said >= threshold
    hit = (true & given).sum(axis=0)
    either = true.sum(axis=0) + given.sum(axis=0)  # 2 TP + FP + FN
    named = either > 0
    return Multilabel(
        n=len(true),
        mean_average_precision=float(np.mean(known)) if known else None,
        average_precisions=aps,
        micro_f1=2 * int(hit.sum()) / int(either.sum()) if named.any() else None,
        macro_f1=float((2 * hit[named] / either[named]).mean()) if named.any() else None,
        unused=len(aps) - len(known),
    )


def average_precision(truth: Bools, scores: F64) -> float | None:
    """Of one label: (n,) bool and (n,) float64. None when nothing has it."""
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the end of each run of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / positives)
