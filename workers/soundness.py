"""Whether what an encoder answered may be stored: its shape, its type, and every vector's length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ArtifactError


def sound_norms(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows of (n, dim) are finite and of length 1: (n,) bool."""
    with np.errstate(over="ignore", invalid="ignore"):  # that is what is looked for
        norms = np.linalg.norm(vectors, axis=1)
    sound: npt.NDArray[np.bool_] = np.isfinite(norms) & (np.abs(norms - 1) <= 1e-2)
    return sound


def sound_answer(answer: object, n: int, dim: int) -> npt.NDArray[np.float32]:
    """An encoder's answer, if it is (n, dim) float32: numpy would spread another shape over the rows without a word.

    Raises ArtifactError: the encoder is broken, not the batch.
    """
    if isinstance(answer, np.ndarray) and answer.shape == (n, dim) and answer.dtype == np.float32:
        return answer
    found = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
    raise ArtifactError(
        f"the encoder returned {found} for {n} items, not float32 ({n}, {dim}): correct the encoder, then "
        "`hotrefresh rollout resume`"
    )
