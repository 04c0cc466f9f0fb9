"""Modules that others trained on a model's embeddings, and that stay as they are when the model changes.

A classification head and a text tower: both are fitted on the **old** model's embeddings and frozen. What a new model is
worth to them is what they measure with its embeddings in the old space: `evaluate`. Their bytes do not change by that, which
their digest shows: the sha256 of their tensors as safetensors, the same in memory and on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Manifest, load_artifact, load_manifest, save_artifact
from models.errors import ArtifactError, UsageError
from models.training_loop import learning_rate_at

F32 = npt.NDArray[np.float32]
KIND = "downstream"
_LEAST = 1e-12


class Downstream(Protocol):
    """A frozen module that takes embeddings of one space."""

    @property
    def dim(self) -> int:
        """Of the embeddings it takes."""

    @property
    def metric(self) -> str:
        """What `evaluate` returns."""

    @property
    def digest(self) -> str:
        """sha256, hex, of its tensors as safetensors."""

    def knows(self, label: str) -> bool:
        """Whether pictures of this label can be measured."""

    def evaluate(self, features: F32, labels: Sequence[str]) -> float:
        """The metric, 0..1, of (n, dim) float32 L2-normalised embeddings of n pictures of known labels.

        Raises UsageError for another dim, labels that it does not know, or nothing to measure.
        """

    def scores(self, features: F32, labels: Sequence[str]) -> npt.NDArray[np.float64]:
        """(q,) float64, 0..1: what `evaluate` is the mean of, one number a picture or a text. Raises as that does."""


@dataclass(frozen=True)
class ClassificationHead:
    """A linear classifier. `weight` (C, dim), `bias` (C,) float32, `classes`: C names."""

    weight: F32
    bias: F32
    classes: tuple[str, ...]
    metric = "accuracy"

    @property
    def dim(self) -> int:
        """See `Downstream`."""
        return int(self.weight.shape[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All it is made of, by name."""
        return {"weight": torch.tensor(self.weight), "bias": torch.tensor(self.bias)}

    @property
    def digest(self) -> str:
        """See `Downstream`."""
        return _digest(self.tensors)

    def knows(self, label: str) -> bool:
        """See `Downstream`."""
        return label in self.classes

    def evaluate(self, features: F32, labels: Sequence[str]) -> float:
        """The share of pictures whose class is named; see `Downstream`."""
        return float(self.scores(features, labels).mean())

    def scores(self, features: F32, labels: Sequence[str]) -> npt.NDArray[np.float64]:
        """1 for each picture whose class is named, 0 for each other; see `Downstream`."""
        wanted = _places(self.classes, labels)
        found = (_checked(features, self.dim, labels) @ self.weight.T + self.bias).argmax(axis=1)
        return np.asarray(found == wanted, np.float64)


@dataclass(frozen=True)
class TextTower:
    """A bag of words: a text's vector is the L2-normalised mean of its words' rows. `table` (V, dim) float32, V `words`."""

    table: F32
    words: tuple[str, ...]
    metric = "mean average precision, text to image"

    @property
    def dim(self) -> int:
        """See `Downstream`."""
        return int(self.table.shape[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All it is made of, by name."""
        return {"table": torch.tensor(self.table)}

    @property
    def digest(self) -> str:
        """See `Downstream`."""
        return _digest(self.tensors)

    def encode(self, texts: Sequence[str]) -> F32:
        """(n, dim) float32, L2-normalised. Unknown words are passed over.

        Raises UsageError for a text without a known word.
        """
        bag = _bag(self.words, texts) @ self.table
        return np.asarray(bag / np.maximum(np.linalg.norm(bag, axis=1, keepdims=True), _LEAST), np.float32)

    def knows(self, label: str) -> bool:
        """See `Downstream`."""
        return not set(words_of(label)).isdisjoint(self.words)

    def evaluate(self, features: F32, labels: Sequence[str]) -> float:
        """Each distinct label is a query; the pictures of that label are right. See `Downstream`."""
        return float(self.scores(features, labels).mean())

    def scores(self, features: F32, labels: Sequence[str]) -> npt.NDArray[np.float64]:
        """The average precision of each distinct label, in their order; see `Downstream`."""
        features = _checked(features, self.dim, labels)
        texts = sorted(set(labels))
        scores = self.encode(texts) @ features.T
        truth = np.asarray(texts)[:, None] == np.asarray(labels)[None]
        return np.array([_average_precision(row, right) for row, right in zip(scores, truth, strict=True)])


def fit_head(features: F32, labels: Sequence[str], *, steps: int = 600, seed: int = 0) -> ClassificationHead:
    """A classifier of (n, dim) float32 embeddings by AdamW on the cross-entropy, from zero."""
    classes = tuple(sorted(set(labels)))
    rows, right = torch.from_numpy(_checked(features, features.shape[1], labels)), _places(classes, labels)
    targets = torch.from_numpy(right)
    layer = nn.Linear(rows.shape[1], len(classes))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()

    def loss(batch: Tensor) -> Tensor:
        return functional.cross_entropy(layer(rows[batch]), targets[batch])

    _descend(layer.parameters(), loss, len(rows), steps, seed, learning_rate=0.1)
    return ClassificationHead(
        layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy(), classes
    )


def fit_text_tower(
    features: F32, texts: Sequence[str], *, steps: int = 600, seed: int = 0, temperature: float = 0.07
) -> TextTower:
    """A text tower for (n, dim) float32 embeddings of pictures with one text each, by the contrast of both within a batch."""
    from models.taca.losses import cross_model_contrast

    distinct = tuple(sorted(set(texts)))
    words = tuple(sorted({word for text in distinct for word in words_of(text)}))
    rows = torch.from_numpy(_checked(features, features.shape[1], texts))
    bags, place = torch.from_numpy(_bag(words, distinct)), torch.from_numpy(_places(distinct, texts))
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(len(words), rows.shape[1], generator=generator)
    table = nn.Parameter(start * rows.shape[1] ** -0.5)

    def loss(batch: Tensor) -> Tensor:
        own = place[batch]
        return cross_model_contrast(
            rows[batch], functional.normalize(bags[own] @ table, dim=1), temperature, own
        )

    _descend([table], loss, len(rows), steps, seed, learning_rate=0.01)
    return TextTower(table.detach().numpy().copy(), words)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, divided by blanks and hyphens."""
    return text.lower().replace("-", " ").split()


def save(module: ClassificationHead | TextTower, folder: Path, name: str, space_fingerprint: str) -> Manifest:
    """Writes a frozen module's artifact. Its manifest names the space it takes, and its `digest` is the module's."""
    architecture, options = _described(module)
    return save_artifact(
        folder,
        module.tensors,
        kind=KIND,
        name=name,
        architecture=architecture,
        options={**options, "space_fingerprint": space_fingerprint},
        modality="image" if isinstance(module, ClassificationHead) else "text",
        preprocessing={},
        dim=module.dim,
    )


def load(folder: Path, expected: str | None = None) -> ClassificationHead | TextTower:
    """A frozen module, verified. Raises ArtifactError as `load_artifact`, or where its parts do not fit together.

    `expected`: the fingerprint that its manifest must have; None: any.
    """
    manifest, tensors = load_artifact(folder)
    if expected is not None and manifest.fingerprint != expected:
        raise ArtifactError(
            f"the artifact in {folder} is not the one that was registered (fingerprint {manifest.fingerprint[:12]} instead of "
            f"{expected[:12]}); restore it, or register the new one under another name"
        )
    if manifest.kind != KIND:
        raise ArtifactError(
            f"{folder} holds an {manifest.kind}, not a downstream module: name the folder of one"
        )
    try:
        module = _LOADERS[manifest.architecture](manifest.options, tensors)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} holds no downstream module that is known: {error}. Fit it again"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in module.tensors.items()}
    if shapes != _shapes(module, manifest.dim):
        raise ArtifactError(f"{folder} does not fit its manifest: its tensors are {shapes}. Fit it again")
    return module


def verified_manifest(folder: Path) -> Manifest:
    """The manifest of a module that `load` accepts; raises as that does."""
    manifest = load_manifest(folder)
    load(folder, manifest.fingerprint)
    return manifest


_LOADERS: Mapping[
    str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], ClassificationHead | TextTower]
] = {
    "linear_head": lambda options, tensors: ClassificationHead(
        tensors["weight"].numpy(), tensors["bias"].numpy(), tuple(options["classes"])
    ),
    "bag_of_words": lambda options, tensors: TextTower(tensors["table"].numpy(), tuple(options["words"])),
}


def _described(module: ClassificationHead | TextTower) -> tuple[str, dict[str, Any]]:
    if isinstance(module, ClassificationHead):
        return "linear_head", {"classes": list(module.classes)}
    return "bag_of_words", {"words": list(module.words)}


def _shapes(module: ClassificationHead | TextTower, dim: int) -> dict[str, tuple[int, ...]]:
    if isinstance(module, ClassificationHead):
        return {"weight": (len(module.classes), dim), "bias": (len(module.classes),)}
    return {"table": (len(module.words), dim)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save as serialise

    return hashlib.sha256(serialise(dict(tensors))).hexdigest()


def _descend(
    parameters: Any, loss: Callable[[Tensor], Tensor], n: int, steps: int, seed: int, *, learning_rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_at(step / steps))
    for _ in range(steps):
        value = loss(torch.randint(n, (min(n, 256),), generator=generator))
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _bag(words: Sequence[str], texts: Sequence[str]) -> F32:
    """(n, V) float32: the share of each word among a text's known words."""
    place = {word: number for number, word in enumerate(words)}
    found = np.zeros((len(texts), len(words)), np.float32)
    for row, text in enumerate(texts):
        known = [place[word] for word in words_of(text) if word in place]
        if not known:
            raise UsageError(f"the text tower knows no word of {text[:80]!r}.")
        np.add.at(found[row], known, 1 / len(known))
    return found


def _places(classes: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {name: number for number, name in enumerate(classes)}
    if unknown := set(labels) - set(place):
        raise UsageError(
            f"there is no class {min(unknown)[:80]!r} among the {len(classes)} that this head knows."
        )
    return np.array([place[label] for label in labels], np.int64)


def _checked(features: F32, dim: int, labels: Sequence[str]) -> F32:
    if features.ndim != 2 or features.shape[1] != dim or len(features) != len(labels) or not len(labels):
        raise UsageError(
            f"a module for embeddings of {dim} dims cannot be used with {features.shape} and {len(labels)} labels: "
            "give embeddings in the old space, one label each."
        )
    return np.ascontiguousarray(features, np.float32)


def _average_precision(scores: F32, right: npt.NDArray[np.bool_]) -> float:
    """Of one query: the mean over its right pictures of the precision at each one's rank; earlier rows first among equals."""
    hits = right[np.argsort(-scores, kind="stable")]
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())
