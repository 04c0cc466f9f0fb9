"""BLEU of generated texts by characters, as sacrebleu computes it. CIDEr stands in `orchestrator.core.captioning`.

`pip install 'hotrefresh[generation]'`. BLEU-4 of the whole set: clipped counts of n-grams are summed over all texts, the brevity
penalty takes each text's closest reference, nothing is smoothed: a set without one shared 4-gram scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.errors import UsageError


def character_bleu(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 over characters, 0 to 1, white space left out.

    Args:
        generated: texts.
        references: for each its references, one or more; not all need have as many.

    Raises:
        ValueError: no text, other lengths, or a text without a reference.
        UsageError: sacrebleu is not installed.
    """
    if not generated or len(generated) != len(references):
        raise ValueError(
            f"{len(generated)} texts for {len(references)} lists of references; one or more are needed"
        )
    if not all(references):
        raise ValueError("every text needs a reference")
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as missing:
        raise UsageError(
            f"BLEU needs sacrebleu ({missing}): pip install 'hotrefresh[generation]'."
        ) from missing
    most = max(map(len, references))
    # sacrebleu takes references column by column, None where a text has no more of them.
    columns: Any = [
        [_joined(several[at]) if at < len(several) else None for several in references] for at in range(most)
    ]
    metric = BLEU(tokenize="char", smooth_method="none")
    return float(metric.corpus_score(list(map(_joined, generated)), columns).score) / 100


def _joined(text: str) -> str:
    return "".join(text.split())
