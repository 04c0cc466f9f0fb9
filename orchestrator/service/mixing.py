"""How a rollout's new vectors are to meet the stored ones, resolved from its certificate once, when it starts."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.core.calibration import Calibration
from orchestrator.core.strategies import Strategy
from orchestrator.errors import NotCertifiedError, UsageError
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import CertificateRow, GalleryRow
from orchestrator.serving.calibration import calibration_of


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


def certified_uncalibrated(certificate: CertificateRow) -> None:
    """Raises NotCertifiedError where raw scores were refused, and only the certificate's own calibration was not."""
    raw = certificate.measured.get("uncalibrated")
    if raw is not None and raw["verdict"] != "certified":
        raise NotCertifiedError(
            f"certificate {certificate.id} holds for calibrated scores only; with raw ones: {raw['reason'].rstrip('.')}. "
            "Start with `--calibration auto`, and with no other rollout running."
        )
