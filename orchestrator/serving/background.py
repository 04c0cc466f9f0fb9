"""The background set of a gallery, as each version of a mixture stores it: what served scores are adjusted by.

An item's vector is what its version's model made of it, put through the adapters of the rollouts that lifted stored
vectors since, and laid out for its version's calibrated scores. The background goes the same way, and is asked with the same
queries: so its scores mean what an item's of that version do (`core.background`). Codes are left out: their rows are made
of other versions' stored vectors, which a picture that is stored nowhere does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.background import background_level, subtract_background
from orchestrator.core.calibration import Calibration
from orchestrator.core.thresholds import Thresholds, ThresholdTracker
from orchestrator.ledger.queries import backgrounds as background_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import AdapterRow, BackgroundSetRow, ModelRow, RolloutRow
from orchestrator.serving.calibration import calibrated
from orchestrator.serving.embedding import encode_uris

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Layouts = Mapping[int, Vectors]
QUERY_BLOCK = 1024


@dataclass(frozen=True)
class Recipe:
    """How a version's stored vectors came to be: the model, then these adapters one after another."""

    version: int
    model: ModelRow
    adapters: tuple[AdapterRow, ...]


@dataclass(frozen=True)
class BackgroundPlan:
    """What is embedded for a rollout: read inside a transaction, made outside of it.

    Attributes:
        before, deployed: of the versions that the old system and the new one search.
        maps: of calibrated scores, by version.
    """

    row: BackgroundSetRow
    before: tuple[Recipe, ...]
    deployed: tuple[Recipe, ...]
    maps: Mapping[int, Calibration]


@dataclass(frozen=True)
class Backgrounds:
    """Of both systems: version -> (B, width) float32, as rows of that version are searched.

    Attributes:
        before_version, version: (N,) int64, the version of each row, 0 where it has no vector.
        holder: the version that batches bring.
    """

    row: BackgroundSetRow
    n: int
    before: Layouts
    deployed: Layouts
    before_version: Rows
    version: Rows
    holder: int


def why_not_adjusted(connection: Connection, rollout: RolloutRow) -> str | None:
    """Why no thresholds of a rollout are adjusted by a background set, or None."""
    effective = rollout_queries.effective_rollouts(connection, rollout.gallery_id)
    models = {each.to_model_id for each in (*effective, rollout) if each.id <= rollout.id}
    gallery = gallery_queries.gallery_by_id(connection, rollout.gallery_id)
    for each in sorted(models):
        model = model_queries.model_by_id(connection, each)
        if model.base_model_id is not None:
            return f"model {model.name} is a codec: a background is not compared with codes"
        if model.modality != gallery.modality:
            return f"model {model.name} embeds {model.modality}s, and a background holds {gallery.modality}s"
    return None


def plan_background(
    connection: Connection, rollout: RolloutRow, holder: int, before: Rows, deployed: Rows,
    maps: Mapping[int, Calibration],
) -> BackgroundPlan | None:  # fmt: skip
    """What a rollout's background is made of; None without a set, or where `why_not_adjusted` says why.

    Args:
        holder: the rollout whose batches change what is searched.
        before, deployed: (N,) int64, the version of each row in the old system and in the new one.
    """
    row = background_queries.background_set_of_rollout(connection, rollout.id, rollout.gallery_id)
    if row is None or why_not_adjusted(connection, rollout) is not None:
        return None
    known = {each.id: each for each in rollout_queries.effective_rollouts(connection, rollout.gallery_id)}
    known[rollout.id] = rollout

    def recipes(versions: set[int], last: int) -> tuple[Recipe, ...]:
        made = []
        for version in sorted(versions - {0}):
            model = model_queries.model_by_id(connection, known[version].to_model_id)
            lifts = (
                known[each].adapter_id
                for each in sorted(known)
                if version < each <= last and known[each].how.lifts
            )
            adapters = tuple(
                model_queries.adapter_by_id(connection, each) for each in lifts if each is not None
            )
            made.append(Recipe(version, model, adapters))
        return tuple(made)

    return BackgroundPlan(
        row,
        recipes(set(np.unique(before).tolist()), rollout.id - 1),
        recipes({*np.unique(deployed).tolist(), holder}, rollout.id),
        maps,
    )


def embed_background(
    context: Context, plan: BackgroundPlan, holder: int, before: Rows, deployed: Rows
) -> Backgrounds | None:
    """Embed a background set by every version; None where fewer items than its neighbour can still be read by all of them."""
    raw: dict[int, Vectors] = {}
    read = np.ones(len(plan.row.uris), bool)
    for recipe in (*plan.before, *plan.deployed):
        if recipe.model.id not in raw:
            raw[recipe.model.id], failed = encode_uris(context.encoder(recipe.model), plan.row.uris)
            read[list(failed)] = False
    if read.sum() < plan.row.neighbour:
        return None

    def stored(recipe: Recipe) -> Vectors:
        vectors = raw[recipe.model.id][read]
        for adapter in recipe.adapters:
            vectors = context.adapter(adapter).transform(vectors)[0]
        return calibrated(vectors, np.full(len(vectors), recipe.version, np.int64), plan.maps)

    return Backgrounds(
        plan.row,
        int(read.sum()),
        {each.version: stored(each) for each in plan.before},
        {each.version: stored(each) for each in plan.deployed},
        before,
        deployed,
        holder,
    )


class AdjustedThresholds:
    """One query set's thresholds by scores less those of the background in the version of the item that answers.

    First answers are those that are served; they are ranked, and cut, by adjusted scores.

    Args:
        old, new: (Q, width) float32, query vectors as either system is asked.
        asked: (m,) int64, queries that are ranked; true_pairs: queries with an answer.
        right, scores, rows: (Q,) the old system's first answers.
    """

    def __init__(
        self, background: Backgrounds, old: Vectors, new: Vectors, asked: Rows, true_pairs: int,
        right: Bools, scores: Vectors, rows: Rows,
    ) -> None:  # fmt: skip
        self.background, self._asked = background, asked
        self._version = background.version.copy()
        self._levels = levels_of(background.deployed, new, background.row.neighbour)
        before = levels_of(background.before, old, background.row.neighbour)
        adjusted = self._adjusted(before, scores, background.before_version[rows])
        self._tracker = None
        if adjusted is not None:
            self._tracker = ThresholdTracker(asked, true_pairs, right, adjusted)

    def apply(self, rows: Rows, vectors: Vectors) -> None:
        """A batch came; a row whose vector is zero has none from here on."""
        self._version[rows] = np.where(vectors.any(axis=1), self.background.holder, 0)

    def measure(self, right: Bools, scores: Vectors, rows: Rows) -> Thresholds | None:
        """Of a mixture, as `ThresholdTracker.measure`. None where some first answer, here or in the old system, is an item
        without a vector: it has no version to be compared in."""
        if self._tracker is None:
            return None
        adjusted = self._adjusted(self._levels, scores, self._version[rows])
        return None if adjusted is None else self._tracker.measure(right, adjusted)

    def _adjusted(
        self, levels: Mapping[int, npt.NDArray[np.float64]], scores: Vectors, versions: Rows
    ) -> Vectors | None:
        asked = self._asked
        if not versions[asked].all():
            return None
        found = np.zeros(len(scores), np.float64)
        known = np.array(sorted(levels), np.int64)
        table = np.stack([levels[each] for each in known.tolist()])
        places = np.searchsorted(known, versions[asked])
        found[asked] = subtract_background(scores[asked], asked, places, table, self.background.row.beta)
        return found.astype(np.float32)


def levels_of(layouts: Layouts, queries: Vectors, neighbour: int) -> dict[int, npt.NDArray[np.float64]]:
    """Version -> (Q,) float64, `background_level` of each query; of many queries a block at a time."""
    return {
        version: np.concatenate(
            [
                background_level(queries[at : at + QUERY_BLOCK] @ rows.T, neighbour)
                for at in range(0, max(len(queries), 1), QUERY_BLOCK)
            ]
        )
        for version, rows in layouts.items()
    }
