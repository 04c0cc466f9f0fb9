"""What a certificate measures where the new model is a codec: codes beside floats, or codes beside codes.

No item is read where the embeddings that the codec encodes are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.codecs.coded import unit_codes
from orchestrator.context import Context
from orchestrator.core.joint import joint_codes, joint_floats, joint_queries
from orchestrator.core.metrics import Relevance, top_k
from orchestrator.errors import NotCertifiedError
from orchestrator.ledger.rows import ModelRow
from orchestrator.service.stored import floats_of_rows
from orchestrator.serving.embedding import Progress, encode_uris

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
DEPTH = 10
"""Answers of a query that the floats' and the codes' lists are compared over."""


@dataclass(frozen=True)
class Coded:
    """Vectors of one space: (Q, d) queries, (r, d) the stored rows and the rows as codes, all float32.

    Attributes:
        failed: places of rows that have no code and keep their stored vector.
        quantisation: what the codec alone costs, as a certificate keeps it.
    """

    queries: F32
    base: F32
    fresh: F32
    failed: set[int]
    quantisation: dict[str, Any]


def check_codecs(old: ModelRow, new: ModelRow) -> None:
    """Whether a codec's codes can stand beside an older model's vectors, or floats beside codes.

    Raises:
        NotCertifiedError: they cannot; the message says what can.
    """
    if new.base_model_id is None:
        if old.base_model_id is None:
            return
        raise NotCertifiedError(
            f"{new.name!r} makes floats, and what is stored are codes of {old.name!r}: they cannot meet in one search. Fit a "
            f"codec for it with `hotrefresh codec train NAME --model {new.name} --like {old.name}`, or return to the floats "
            "with `hotrefresh rollout rollback`."
        )
    if old.base_model_id is None and new.base_model_id != old.id:
        raise NotCertifiedError(
            f"{new.name!r} encodes embeddings of another model than {old.name!r}, whose floats are stored. Upgrade the model "
            "first, then recode; or recode with a codec of the stored model."
        )
    if old.base_model_id is not None and old.dim != new.dim:
        raise NotCertifiedError(
            f"codes of {new.dim} dimensions cannot be compared with codes of {old.dim}; fit the codec with `--like {old.name}`."
        )


def coded_vectors(
    context: Context,
    gallery: str,
    old: ModelRow,
    new: ModelRow,
    rows: I64,
    stored: F32,
    asked: tuple[F32, Sequence[str]],
    relevance: Relevance,
    progress: Progress,
) -> Coded:
    """The vectors of a sample for a codec `new`.

    Args:
        stored: (r, d_old) float32, the sampled `rows` as `old` has them.
        asked: the queries, (Q, d_old) float32 by `old`, and where they are read.
    """
    codec, base_model = context.codec(new), context.base_of(new)
    of_floats = new.base_model_id == old.id
    floats, failed = (
        (stored, set(np.flatnonzero(~stored.any(axis=1)).tolist()))
        if of_floats
        else floats_of_rows(context, gallery, base_model, rows, progress)
    )
    old_queries, query_uris = asked
    float_queries = old_queries if of_floats else encode_uris(context.encoder(base_model), query_uris)[0]
    codes, query_codes = unit_codes(codec, floats), unit_codes(codec, float_queries)
    cost = quantisation(float_queries, floats, query_codes, codes, relevance)
    if of_floats:
        width = codes.shape[1]
        base = joint_floats(stored, width)
        fresh = joint_codes(codes, floats.shape[1])
        queries = joint_queries(query_codes, float_queries)
    else:
        base, fresh, queries = stored, codes, query_codes
    unread = sorted(failed)
    fresh[unread] = base[unread]
    return Coded(queries, base, fresh, failed, cost)


def quantisation(
    float_queries: F32, floats: F32, query_codes: F32, codes: F32, relevance: Relevance
) -> dict[str, Any]:
    """Flips between a search of floats and one of their codes, at the same version of the model, and what both lists share.

    Args:
        float_queries, floats: (Q, n) and (r, n) float32; query_codes, codes: (Q, m) and (r, m) float32, the same as codes.
    """
    depth = min(DEPTH, len(floats))
    by_floats, by_codes = top_k(float_queries, floats, depth)[1], top_k(query_codes, codes, depth)[1]
    counted = relevance.answerable
    before = relevance.hits(by_floats[:, :1]) & counted
    after = relevance.hits(by_codes[:, :1]) & counted
    shared = [
        len(set(a) & set(b)) / depth for a, b in zip(by_floats.tolist(), by_codes.tolist(), strict=True)
    ]
    return {
        "queries": int(counted.sum()),
        "negative": int((before & ~after).sum()),
        "positive": int((~before & after).sum()),
        "recall_of_floats": float(before.sum() / max(1, counted.sum())),
        "recall_of_codes": float(after.sum() / max(1, counted.sum())),
        "depth": depth,
        "overlap": sum(shared) / max(1, len(shared)),
    }
