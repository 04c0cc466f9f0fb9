"""Codes for a gallery: stored embeddings are read instead of items, and encoded by a codec.

What has no stored embedding, an item that is new or was changed, is embedded by the codec's base model first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifact import Manifest
from models.codecs.coded import unit_codes
from models.errors import ItemError
from orchestrator.context import Context
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import Claim, ModelRow
from orchestrator.serving.floats import StoredFloats
from workers.encode import PlacedEncoder, placed_once
from workers.pipeline import Pipeline
from workers.work import Work

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """An embedding (n,) float32 among prepared items."""

    vector: F32


class Coder:
    """An `Encoder` of items and of stored embeddings. The base model is loaded when the first item comes."""

    def __init__(self, context: Context, model: ModelRow) -> None:
        self._context = context
        self._codec = context.codec(model)
        self._base = context.base_of(model)
        self.manifest: Manifest = self._codec.manifest

    @property
    def dim(self) -> int:
        """Length of the codes."""
        return self._codec.shape.width

    @property
    def modality(self) -> str:
        """The base model's."""
        return self._base.modality

    def preprocess(self, item: Any) -> Any:
        """One item, ready for `encode`."""
        return self._context.encoder(self._base).preprocess(item)

    def encode(self, prepared: Sequence[Any]) -> F32:
        """(n, m) float32, codes as unit vectors. `prepared`: (n, d) float32 embeddings, or preprocessed items and `Stored`."""
        if isinstance(prepared, np.ndarray) and prepared.ndim == 2:
            return unit_codes(self._codec, prepared)
        floats = np.zeros((len(prepared), self._base.dim), np.float32)
        items = [place for place, each in enumerate(prepared) if not isinstance(each, Stored)]
        for place, each in enumerate(prepared):
            if isinstance(each, Stored):
                floats[place] = each.vector
        if items:
            floats[items] = self._embedder().encode([prepared[place] for place in items])
        return unit_codes(self._codec, floats)

    def _embedder(self) -> PlacedEncoder:
        settings = self._context.settings
        encoder = self._context.encoder(self._base)
        return placed_once(encoder, settings.device, settings.precision, settings.compile_encoder)  # type: ignore[arg-type]


class RecodePipeline(Pipeline):
    """A drain that reads embeddings where others read items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with snapshot(self.context.engine) as connection:
            base_id = model_queries.model_by_id(connection, self.rollout.to_model_id).base_model_id
            assert base_id is not None, "only codecs recode"
            self.floats = StoredFloats(connection, self.rollout.gallery_id, base_id)

    def prepare(self, claim: Claim) -> Work:
        """Read a batch's stored embeddings; items only where there is none."""
        started = time.monotonic()
        with transaction(self.context.engine) as connection:
            rows = self._rows_of(connection, claim)
        if (
            claim.first_rank >= self.rollout.plan_items
        ):  # these came, or were changed, after what is stored was made
            vectors, known = np.zeros((len(rows), self.floats.dim), np.float32), np.zeros(len(rows), np.bool_)
        else:
            vectors, known = self.floats.read(rows)
        if known.all():
            return Work(claim, rows, vectors, list(range(len(rows))), {}, time.monotonic() - started)  # type: ignore[arg-type]
        return self._beside_items(claim, rows, vectors, known, started)

    def _beside_items(
        self,
        claim: Claim,
        rows: npt.NDArray[np.int64],
        vectors: F32,
        known: npt.NDArray[np.bool_],
        started: float,
    ) -> Work:
        unknown = np.flatnonzero(~known)
        with transaction(self.context.engine) as connection:
            uris = gallery_queries.uris_of_rows(
                connection, self.rollout.gallery_id, rows[unknown].tolist(), self.encoder.modality
            )
        read = dict(zip(unknown.tolist(), self.read_items(uris), strict=True))
        prepared, places, holes = [], [], {}
        for at in range(len(rows)):
            outcome = read[at] if at in read else Stored(vectors[at])
            if isinstance(outcome, ItemError):
                holes[at] = (outcome.reason, str(outcome))
            else:
                prepared.append(outcome)
                places.append(at)
        return Work(claim, rows, prepared, places, holes, time.monotonic() - started)
