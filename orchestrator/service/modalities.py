"""Which modality of a gallery's items is embedded: that of the model. So each item must have it."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError
from orchestrator.ledger.queries import modalities as modality_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ModelRow


def check_embeddable(connection: Connection, gallery: GalleryRow, model: ModelRow) -> None:
    """Whether a model can embed all items of a gallery.

    Raises:
        ConflictError: the gallery holds nothing of the model's modality, or some items have nothing in it.
    """
    if model.modality == gallery.modality:
        return
    give = f"Give items theirs by key: `hotrefresh gallery update {gallery.name} SOURCE`."
    if model.modality not in gallery.other_modalities:
        held = " and ".join(f"{each}s" for each in gallery.modalities)
        raise ConflictError(
            f"{model.name!r} embeds {model.modality}s, gallery {gallery.name!r} holds {held}. {give}"
        )
    missing = modality_queries.count_without(connection, gallery.id, model.modality)
    if missing:
        raise ConflictError(
            f"{model.name!r} embeds {model.modality}s, and {missing} of the {gallery.n_items - gallery.n_deleted} items of "
            f"gallery {gallery.name!r} have no {model.modality}. {give}"
        )


def modalities_in_use(connection: Connection, gallery: GalleryRow) -> frozenset[str]:
    """What every item of a gallery must be: the gallery's own modality, and those of the models that its vectors are of.

    Also of what a rollback would return to, and of a rollout that is planned.
    """
    rollouts = rollout_queries.effective_rollouts(connection, gallery.id)
    latest = rollout_queries.latest_rollout(connection, gallery.id)
    if latest is not None and latest.state == RolloutState.PLANNED:
        rollouts = [*rollouts, latest]
    models = {rollout.to_model_id for rollout in rollouts if rollout.how.holds_vectors}
    found = (model_queries.model_by_id(connection, model_id).modality for model_id in models)
    return frozenset((gallery.modality, *found))
