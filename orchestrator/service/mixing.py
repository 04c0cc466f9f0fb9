"""How a rollout's new vectors are to meet the stored ones, resolved from its certificate once, when it starts; and whether
what serves may still meet them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection

from orchestrator.core.calibration import IDENTITY, Calibration
from orchestrator.core.guard import Guard
from orchestrator.core.strategies import Strategy
from orchestrator.errors import NotCertifiedError, UsageError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import CertificateRow, GalleryRow
from orchestrator.service.names import find_gallery
from orchestrator.serving.calibration import calibration_of
from orchestrator.serving.certified import uncertified
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.queries import serving_path

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.service.start import StartRequest


def resolved_calibration(
    connection: Connection, gallery: GalleryRow, certificate: CertificateRow, strategy: Strategy, asked: str
) -> dict[str, float] | None:
    """The map of the scores of a rollout's new vectors, as its config keeps it; None: they stay raw.

    The certificate maps new vectors to where the newest stored ones are raw; these may be mapped themselves, and what is
    stored is not rewritten, so the new ones go through both.

    Raises:
        NotCertifiedError: the pair is certified with its calibration only, and `asked` is "off" or nothing is mixed in.
        UsageError: `asked` is neither "auto" nor "off".
    """
    if asked not in ("auto", "off"):
        raise UsageError(f"calibration {asked!r} is not known; choose auto or off.")
    fitted = certificate.measured.get("calibration")
    use = asked == "auto" and fitted is not None and fitted["on"] and strategy.reembeds
    if not use and strategy.reembeds:
        certified_uncalibrated(certificate)
    holder = rollout_queries.newest_holder(connection, gallery.id)
    if holder is None or not strategy.holds_vectors:
        return None
    whole = calibration_of(holder).after(Calibration.of(fitted if use else None))
    return None if whole.identity else whole.stored()


def resolved_guard(
    connection: Connection,
    gallery: GalleryRow,
    certificate: CertificateRow,
    calibration: dict[str, float] | None,
    request: StartRequest,
    strategy: Strategy,
) -> dict[str, float] | None:
    """The band and the merging map of a rollout's guard, for scores as they are served; None: it was not asked for.

    Raises:
        UsageError: the certificate holds no guard for such a rollout.
    """
    if not request.guard:
        return None
    fitted, calibrated = certificate.measured.get("guard"), certificate.measured.get("calibration")
    why = None
    if fitted is None or not strategy.reembeds:
        why = f"certificate {certificate.id} has none: old queries search stored vectors of their own model, not adapted ones"
    elif request.supersede:
        why = "the rows of a rollout that is superseded were not measured with it"
    elif _modality(connection, certificate.query_model_id) != _modality(
        connection, certificate.gallery_model_id
    ):
        why = "its models embed different modalities, and a query is of one"
    elif calibrated is not None and calibrated["on"] and request.calibration == "off":
        why = f"the one of certificate {certificate.id} was fitted for calibrated scores; drop `--calibration off`"
    if why is not None:
        raise UsageError(f"there is no guard for this rollout: {why}.")
    assert fitted is not None
    holder = rollout_queries.newest_holder(connection, gallery.id)
    stored = calibration_of(holder) if holder is not None else IDENTITY
    return Guard.of(fitted).served(stored, Calibration.of(calibration)).stored()


def _modality(connection: Connection, model_id: int) -> str:
    return model_queries.model_by_id(connection, model_id).modality


def certified_uncalibrated(
    certificate: CertificateRow,
    advice: str = "Start with `--calibration auto`, and with no other rollout running.",
) -> None:
    """Raises NotCertifiedError where raw scores were refused, and only the certificate's own calibration was not."""
    raw = certificate.measured.get("uncalibrated")
    if raw is not None and raw["verdict"] != "certified":
        raise NotCertifiedError(
            f"certificate {certificate.id} holds for calibrated scores only; with raw ones: {raw['reason'].rstrip('.')}. {advice}"
        )


def refused_searches(context: Context, gallery_name: str) -> str | None:
    """Why no search of a gallery is answered, in the words that searches get; None: they are, or nothing is embedded yet.

    It looks at the ledger and the store as a replica that starts now does.

    Raises:
        NotFoundError: no such gallery.
    """
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        serving = rollout_queries.serving_now(connection, gallery.id)
        if serving is None:
            return None
        path = serving_path(connection, serving)
        versions = set(load_matrix(connection, gallery.id).version.tolist()) - {0}
        return uncertified(connection, gallery.id, path, serving.rollout_id, versions)
