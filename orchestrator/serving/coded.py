"""What a query of a codec is: its code, and the embedding that the code was made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.codecs.base import Codec
from models.codecs.coded import unit_codes
from orchestrator.core.joint import joint_queries

Vectors = npt.NDArray[np.float32]


def joint_of(codec: Codec, floats: Vectors) -> Vectors:
    """Queries (q, d) of the base model -> (q, m + d): their codes, and themselves for rows that are no codes yet."""
    return joint_queries(unit_codes(codec, floats), floats)
