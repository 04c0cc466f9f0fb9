"""The loss that codecs are trained by: embedding to embedding, with hard negatives (BEBR, arXiv 2302.08714).

With S_kl = cos(b(a_k), b(c_l)) / τ for pairs (a_k, c_k) of identities y_k:

    L = mean_k CE( [S_kk ; the K greatest of {S_kl : y_l ≠ y_k}], 0 ) + the same with a and c exchanged
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def hard_contrast(
    queries: Tensor, gallery: Tensor, identities: Tensor, temperature: float, negatives: int
) -> Tensor:
    """One direction of the loss, a scalar: each query must find its own row among the K rows that deceive it most.

    Args:
        queries, gallery: (B, m) of any length; rows k of both belong together.
        identities: (B,) int64: rows of one identity are no negatives of each other.
        temperature: τ.
        negatives: K; fewer where the batch has fewer.
    """
    similar = functional.normalize(queries, dim=1) @ functional.normalize(gallery, dim=1).T / temperature
    own = similar.diagonal()
    same = identities[:, None] == identities[None, :]
    others = similar.masked_fill(same, -torch.inf).topk(min(negatives, len(similar)), dim=1).values
    return (torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own).mean()


def embedding_to_embedding(
    anchors: Tensor, positives: Tensor, identities: Tensor, temperature: float, negatives: int
) -> Tensor:
    """L of the module's text, a scalar; see `hard_contrast`."""
    forth = hard_contrast(anchors, positives, identities, temperature, negatives)
    return forth + hard_contrast(positives, anchors, identities, temperature, negatives)


def compatible(
    anchors: Tensor,
    positives: Tensor,
    old_positives: Tensor,
    identities: Tensor,
    *,
    old_weight: float,
    temperature: float,
    negatives: int,
) -> Tensor:
    """L(new a, new c) + λ L(new a, old c), a scalar.

    The old codes are constants: a new query must find its row in an old index, whose rows are the negatives as well. So
    the second term has this one direction only; an old query is never asked of new codes.

    Args:
        old_positives: (B, m) codes of the positives under the old codec.
        old_weight: λ.
    """
    alone = embedding_to_embedding(anchors, positives, identities, temperature, negatives)
    to_old = hard_contrast(anchors, old_positives.detach(), identities, temperature, negatives)
    return alone + old_weight * to_old
