"""Whether what an encoder answered may be stored: its shape, its type, every vector's length and place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.core.canary import LEAST_CODE_COSINE, LEAST_COSINE, misplaced
from orchestrator.errors import ArtifactError
from workers.work import Work


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


def check_places(work: Work, *, coded: bool = False) -> None:
    """Compare the canaries, if there are any, with their rows in the batch. `coded`: the vectors are codes.

    Raises ArtifactError: the encoder mixes up its rows; nothing that it makes can be kept.
    """
    if work.again is None or work.encoded is None:
        return
    places = list(work.canaries)
    if not sound_norms(np.concatenate([work.encoded[places], work.again])).all():
        return  # that is another fault, and becomes a hole
    if wrong := misplaced(work.encoded, places, work.again, LEAST_CODE_COSINE if coded else LEAST_COSINE):
        raise ArtifactError(
            f"the encoder's answer for item {wrong[0]} of a batch of {len(work.encoded)} is not what it answers for that "
            "item alone: it mixes up its rows. Mend the encoder, then resume."
        )
