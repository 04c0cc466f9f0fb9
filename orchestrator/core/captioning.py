"""CIDEr-D: how well generated texts agree with reference texts, by weighted n-grams (Vedantam et al., CVPR 2015).

Of each n from 1 to 4 an n-gram weighs its count times log(N / df): N texts are judged, and df of them have it in a reference (at
least 1). With g and r the weights of the generated text and of one reference, lengths in tokens:

    score = 10 / 4 · Σ_n  mean over references of  Σ min(g, r) · r / (|g| |r|)  ·  exp(−(length difference)² / (2 · 6²))

What is measured depends on N and on all references: scores of two sets of texts cannot be compared, and of one text alone every
weight is log 1 = 0. Ours, because the package that is usually taken (pycocoevalcap) is 100 MB, mostly Java for other metrics, and
had its last release in 2020; the tests hold its values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 4
SIGMA = 6.0

Gram = tuple[str, ...]


@dataclass(frozen=True)
class _Weighed:
    weights: tuple[dict[Gram, float], ...]  # by n
    norms: tuple[float, ...]
    length: int


def characters(text: str) -> list[str]:
    """A text's tokens where words have no blanks between them: every character that is no white space."""
    return [character for character in text if not character.isspace()]


def cider(generated: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each text, 0 to 10; their mean is the set's.

    Args:
        generated: N texts, each a sequence of tokens (`characters`, or words).
        references: for each its references, one or more.

    Raises:
        ValueError: no text, other lengths, or a text without a reference.
    """
    if not generated or len(generated) != len(references):
        raise ValueError(
            f"{len(generated)} texts for {len(references)} lists of references; one or more are needed"
        )
    if not all(references):
        raise ValueError("every text needs a reference")
    counted = [[_grams(reference) for reference in several] for several in references]
    holders = Counter(gram for several in counted for gram in set().union(*several))
    log_n = math.log(len(generated))
    scores = []
    for text, own, several in zip(generated, references, counted, strict=True):
        candidate = _weigh(_grams(text), len(text), holders, log_n)
        weighed = [_weigh(c, len(t), holders, log_n) for c, t in zip(several, own, strict=True)]
        scores.append(10.0 * sum(_similarity(candidate, each) for each in weighed) / (LONGEST * len(weighed)))
    return scores


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    return Counter(
        tuple(tokens[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(tokens) - n + 1)
    )


def _weigh(counts: Counter[Gram], length: int, holders: Counter[Gram], log_n: float) -> _Weighed:
    weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (log_n - math.log(max(1, holders[gram])))
    norms = tuple(math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights)
    return _Weighed(weights, norms, length)


def _similarity(candidate: _Weighed, reference: _Weighed) -> float:
    """Summed over n; the penalty of the length is the same for each."""
    total = 0.0
    for n in range(LONGEST):
        scale = candidate.norms[n] * reference.norms[n]
        if scale > 0:
            theirs = reference.weights[n]
            shared = (min(w, theirs[g]) * theirs[g] for g, w in candidate.weights[n].items() if g in theirs)
            total += sum(shared) / scale
    difference = candidate.length - reference.length
    return total * math.exp(-(difference**2) / (2 * SIGMA**2))
