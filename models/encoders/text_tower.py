"""A text tower: a text's vector is the L2-normalised mean of its distinct character n-grams' rows, in the space of another model.

N-grams of characters, because plots are Chinese and Chinese has no blanks between words. It is fitted by the contrast of a
segment's features with its sentence within a batch, and frozen: models that emit the same space later share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from models.artifact import Manifest, save_artifact
from models.encoders.wheel import checked_text
from models.errors import ItemError, UsageError
from models.training_loop import learning_rate_at

LONGEST = 3
LEAST_TEXTS = 2
"""An n-gram of fewer texts says which text it is, and nothing of others."""
MOST_NGRAMS = 30_000
BATCH, TEMPERATURE, LEARNING_RATE = 128, 0.07, 0.01


def create(
    folder: Path,
    name: str,
    features: np.ndarray,
    texts: Sequence[str],
    *,
    steps: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Manifest:
    """Train a tower on n pairs and write its artifact.

    Args:
        features: (n, dim) float32, L2-normalised, of what the texts describe.

    Raises:
        UsageError: fewer than two texts, or texts that share nothing.
    """
    from models.taca.losses import cross_model_contrast

    ngrams = _vocabulary(texts)
    if len(texts) < 2 or not ngrams:
        raise UsageError(f"{len(texts)} texts, which share {len(ngrams)} n-grams, are too few to train on.")
    place = {ngram: number for number, ngram in enumerate(ngrams)}
    bags = [_known(text, place) for text in texts]
    kept = [at for at, bag in enumerate(bags) if bag]
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    same = torch.tensor([distinct[texts[at]] for at in kept])
    rows = torch.from_numpy(np.ascontiguousarray(features[kept], np.float32))
    generator = torch.Generator().manual_seed(seed)
    table = torch.nn.Parameter(
        torch.randn(len(ngrams), rows.shape[1], generator=generator) * rows.shape[1] ** -0.5
    )
    optimiser = torch.optim.AdamW([table], lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_at(min(step / steps, 1.0))
    )
    for step in range(steps):
        batch = torch.randperm(len(kept), generator=generator)[:BATCH]
        said = functional.normalize(_mean(table, [bags[kept[at]] for at in batch.tolist()]), dim=1)
        loss = cross_model_contrast(rows[batch], said, TEMPERATURE, same[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        progress(step + 1, steps)
    return save_artifact(
        folder,
        {"table": table.detach()},
        kind="encoder",
        name=name,
        architecture="text_tower",
        options={"ngrams": "\n".join(ngrams), "longest": LONGEST},
        modality="text",
        preprocessing={},
        dim=int(rows.shape[1]),
        training={"method": "contrast of sentences and features", "pairs": len(kept), "steps": steps, "seed": seed},
    )  # fmt: skip


def load(manifest: Manifest, tensors: Mapping[str, Any]) -> TextTower:
    """The encoder of a manifest. Raises ValueError where its parts do not fit together."""
    ngrams = str(manifest.options["ngrams"]).split("\n")
    table = tensors["table"]
    if tuple(table.shape) != (len(ngrams), manifest.dim) or manifest.options["longest"] != LONGEST:
        raise ValueError(
            f"a table of {tuple(table.shape)} is not of {len(ngrams)} n-grams, {manifest.dim} dims"
        )
    return TextTower(manifest, table, ngrams)


class TextTower:
    """Mean of n-grams' rows."""

    modality = "text"

    def __init__(self, manifest: Manifest, table: torch.Tensor, ngrams: Sequence[str]) -> None:
        self.manifest = manifest
        self._table = table
        self._place = {ngram: number for number, ngram in enumerate(ngrams)}

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.dim

    def preprocess(self, item: Any) -> list[int]:
        """The known n-grams of a text. Raises ItemError for an empty or an overlong one, and one without any it knows."""
        known = _known(checked_text(item), self._place)
        if not known:
            raise ItemError("unsupported", "the text tower knows nothing in this text.")
        return known

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised."""
        if not len(prepared):
            return np.zeros((0, self.dim), np.float32)
        with torch.inference_mode():
            return functional.normalize(_mean(self._table, prepared), dim=1).numpy()


def ngrams_of(text: str) -> list[str]:
    """All n-grams of 1 to LONGEST characters, in lower case; runs of blanks are one blank."""
    plain = " ".join(text.lower().split())
    return [plain[at : at + n] for n in range(1, LONGEST + 1) for at in range(len(plain) - n + 1)]


def _vocabulary(texts: Sequence[str]) -> list[str]:
    counts = Counter(ngram for text in dict.fromkeys(texts) for ngram in set(ngrams_of(text)))
    often = [ngram for ngram, count in counts.items() if count >= LEAST_TEXTS]
    return sorted(sorted(often, key=lambda ngram: (-counts[ngram], ngram))[:MOST_NGRAMS])


def _known(text: str, place: Mapping[str, int]) -> list[int]:
    """The places of a text's known n-grams, each once."""
    return sorted({place[ngram] for ngram in ngrams_of(text) if ngram in place})


def _mean(table: torch.Tensor, bags: Sequence[Sequence[int]]) -> torch.Tensor:
    """(n, dim), the mean of each bag's rows."""
    flat = torch.tensor([number for bag in bags for number in bag])
    starts = torch.tensor([0, *np.cumsum([len(bag) for bag in bags])[:-1].tolist()])
    return functional.embedding_bag(flat, table, starts, mode="mean")
