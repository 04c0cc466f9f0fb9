"""Codes in what is searched: which columns rows have, and what a query of a codec is.

A gallery of codes alone is as wide as a code. Where floats are left, rows are [code | float] (`core.joint`), and with the
code first a query of both parts is cut to a query of codes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.codecs.base import Codec
from models.codecs.coded import unit_codes
from models.codecs.codes import CodeShape
from orchestrator.core.joint import joint_codes, joint_floats, joint_queries
from orchestrator.ledger.rows import ModelRow

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """The columns of a mixture's rows: those of codes, then those of floats; each may be none.

    Attributes:
        model_id: whose floats these are, of the newest model where they are of several; 0 where there are none.
        loops: of the codes with the most bits among those that there are.
    """

    codes: int = 0
    floats: int = 0
    model_id: int = 0
    loops: int = 0

    @property
    def width(self) -> int:
        """Of a row."""
        return self.codes + self.floats

    @property
    def shape(self) -> CodeShape | None:
        """Of which all codes here are; None where there are none. Those of fewer bits are among those of more."""
        return CodeShape(self.codes, self.loops) if self.codes else None

    def over(self, model: ModelRow) -> Layout:
        """What rows are when a model's vectors come over those that there are."""
        shape = model.code_shape
        if shape is None:
            return Layout(0, model.dim, model.id)
        loops = max(self.loops, shape.loops)
        # The floats that codes were made beside; those of an older, compatible model are as long.
        beside = (
            self.floats == int(model.manifest["options"]["source_dim"])
            if self.codes
            else self.model_id == model.base_model_id
        )
        if beside:
            return Layout(model.dim, self.floats, self.model_id, loops)
        return Layout(model.dim, loops=loops)

    def codes_alone(self) -> Layout:
        """What is left where no row is a float."""
        return Layout(self.codes, loops=self.loops)

    def widened(self, vectors: Vectors, older: Layout) -> Vectors:
        """Rows (r, older.width) as rows of this layout; zeros where they have no place in it."""
        if older.codes == self.codes:
            if older.floats == self.floats:
                return vectors
            if self.codes:
                return vectors[:, : self.codes].copy()
        elif not older.codes and older.floats == self.floats:
            return joint_floats(vectors, self.codes)
        return np.zeros((len(vectors), self.width), np.float32)

    def rows(self, vectors: Vectors, *, coded: bool) -> Vectors:
        """Vectors of one kind, codes (r, m) or floats (r, n), as rows (r, width)."""
        if vectors.shape[1] == self.width:
            return vectors
        return joint_codes(vectors, self.floats) if coded else joint_floats(vectors, self.codes)


EMPTY = Layout()
"""Of a gallery without vectors."""


def joint_of(codec: Codec, floats: Vectors) -> Vectors:
    """Queries (q, d) of the base model -> (q, m + d): their codes, and themselves for rows that are no codes yet."""
    return joint_queries(unit_codes(codec, floats), floats)
