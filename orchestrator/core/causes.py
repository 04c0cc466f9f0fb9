"""Why a query is answered wrong during a refresh: because versions are mixed, or because of the new model.

A row is *settled* when its vector will not change any more: it is refreshed, deleted, or cannot be embedded. Where all k
answers of a wrong query are settled and so are all its relevant rows, no later batch can change the order among them, and
what is still to come can only push the relevant rows further down: the new model answers it wrong, even when everything is
refreshed. Every other wrong answer counts as the mixture's, because a relevant row still waits for its new vector, or a
wrong one does: above all a new vector of a wrong item over an old vector of a right one. At the end of a refresh all rows
are settled, and so is the cause of what is wrong then.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from orchestrator.core.metrics import Relevance

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Cause(StrEnum):
    """Of a negative flip."""

    MIXED_STAGE = "mixed_stage"
    MODEL = "model"
    QUANTISATION = "quantisation"
    """Float and code of one and the same model version disagree: it is the codec's, not the model's."""


NOTHING = -1


def waiting_row(answers: I64, queries: I64, relevance: Relevance, settled: Bools) -> I64:
    """(m,) int64: for each wrong query a row that it waits for, a relevant one if there is one; NOTHING: none, it stays wrong.

    Args:
        answers: (m, k) int64, the rows that each query finds now, none of them relevant.
        queries: (m,) int64, which queries these are.
        settled: (N,) bool; see the module.
    """
    waits = ~settled[answers]
    found = np.where(waits.any(axis=1), answers[np.arange(len(answers)), waits.argmax(axis=1)], NOTHING)
    pairs, rows = relevance.of_all(queries)
    waiting = np.flatnonzero(~settled[rows])
    found[pairs[waiting]] = rows[waiting]
    return found
