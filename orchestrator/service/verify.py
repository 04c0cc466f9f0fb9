"""Flipped queries verified by local matching: which of the two answers, the old or the new one, is a copy of the query."""

from __future__ import annotations

import csv
import secrets
from dataclasses import dataclass
from pathlib import Path

from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import matching as matching_queries
from orchestrator.ledger.queries.matching import FlippedPair, VerifiedFlip
from orchestrator.ledger.rows import RolloutRow
from orchestrator.serving.embedding import Progress, no_progress
from orchestrator.serving.matching import check_matchable, compare_pictures

CHUNK = 8
LIMIT = 1000


@dataclass(frozen=True)
class Verified:
    """What was done: flips compared, those of them with a picture that could not be read, and what waits still."""

    compared: int
    unread: int
    waiting: int


def verify_flips(
    context: Context, rollout: RolloutRow, limit: int = LIMIT, progress: Progress = no_progress
) -> Verified:
    """Compare the flips against the old system at k = 1 that are not compared yet, open ones first, at most `limit`.

    It is stored a few at a time: whoever is interrupted goes on there.

    Raises:
        ConflictError: a gallery of texts.
        UsageError: OpenCV is not installed.
    """
    with transaction(context.engine) as connection:
        check_matchable(gallery_queries.gallery_by_id(connection, rollout.gallery_id))
        pairs = matching_queries.flips_to_verify(connection, rollout.id, limit)
    unread = 0
    for at in range(0, len(pairs), CHUNK):
        found = [_verified(pair) for pair in pairs[at : at + CHUNK]]
        unread += sum(each.old_matches is None or each.new_matches is None for each in found)
        with transaction(context.engine) as connection:
            matching_queries.insert_verifications(connection, rollout.id, found)
        progress(min(at + CHUNK, len(pairs)), len(pairs))
    with transaction(context.engine) as connection:
        waiting = matching_queries.count_flips_to_verify(connection, rollout.id)
    return Verified(len(pairs), unread, waiting)


def _verified(pair: FlippedPair) -> VerifiedFlip:
    found = compare_pictures(pair.query_uri, {"old": pair.old_uri, "new": pair.new_uri})
    old, new = found.get("old"), found.get("new")
    return VerifiedFlip(
        pair.query_set_id,
        pair.query_no,
        pair.old_row,
        pair.new_row,
        None if old is None else old.matches,
        None if new is None else new.matches,
        old is not None and old.verified,
        new is not None and new.verified,
    )


def export_verified(context: Context, rollout: RolloutRow, path: Path) -> int:
    """Write the verified pairs of a rollout to a CSV file: query, item (URIs), matches; returns how many.

    Raises:
        UsageError: no .csv file, or one that cannot be written.
    """
    if path.suffix != ".csv":
        raise UsageError(f"{path} cannot be written: its name must end in .csv.")
    with transaction(context.engine) as connection:
        rows = matching_queries.verified_pairs(connection, rollout.id)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("query", "item", "matches"), *rows])
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)
