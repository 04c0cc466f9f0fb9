"""What a background set does to micro-AP over a gallery of one version, and over one that is half refreshed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bench.result import Row
from models.encoders import architecture_module
from models.encoders.images import ImagePreprocessing
from orchestrator.core.background import background_level, subtract_background
from orchestrator.core.matching_metrics import matching_metrics
from orchestrator.core.metrics import top_k

F32 = npt.NDArray[np.float32]
Embed = Callable[[Image.Image], F32]

NETWORK, MOVED = "untrained network", "untrained network, weights moved by 10 %"
RAW, OWN, OTHER = "raw", "less background of its own version", "less background of the other version"
SETTINGS = ((5, 1.0), (10, 2.0))
EDGE, DIM = 32, 64


def networks() -> dict[str, Embed]:
    """Two untrained convolutional networks, one the other with its weights moved: spaces that are compatible without training."""
    return {NETWORK: _network(0.0), MOVED: _network(0.1)}


def _network(moved: float) -> Embed:
    preprocessing = ImagePreprocessing(size=EDGE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture_module("convnet").build({"widths": [16, 32]}, DIM, preprocessing).eval()
        torch.manual_seed(1000)
        with torch.no_grad():
            for weight in network.parameters():
                weight += moved * weight.abs().mean() * torch.randn_like(weight)

    def embed(picture: Image.Image) -> F32:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(preprocessing(picture))).float() / 255
            vector = network(pixels[None])[0].numpy()
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    return embed


Scores = dict[tuple[str, str], list[float]]


def measure(
    embeds: Mapping[str, Embed], references: Mapping[str, Image.Image], asked: Sequence[Image.Image],
    labels: Sequence[str], background: Sequence[Image.Image], seed: int, into: Scores,
) -> None:  # fmt: skip
    """Add micro-AP of one seed to `into`, by (gallery, scores).

    Each embedding alone, then new queries over a gallery of which a random half is refreshed from NETWORK to MOVED.
    """
    keys = list(references)
    vectors = {
        name: np.stack([embed(each) for each in references.values()]) for name, embed in embeds.items()
    }
    queries = {name: np.stack([embed(each) for each in asked]) for name, embed in embeds.items()}
    chance = {name: np.stack([embed(each) for each in background]) for name, embed in embeds.items()}

    def add(gallery: str, scores_of: str, rows: npt.NDArray[np.int64], scores: npt.ArrayLike) -> None:
        truth = [(n, label) for n, label in enumerate(labels) if label in references]
        numbers, names = zip(*truth, strict=True)
        found = matching_metrics(numbers, names, np.arange(len(rows)), [keys[row] for row in rows], scores)
        into.setdefault((gallery, scores_of), []).append(found.micro_ap)

    def adjusted(
        asking: str,
        rows: npt.NDArray[np.int64],
        scores: F32,
        versions: Sequence[str],
        of: npt.NDArray[np.int64],
    ) -> None:
        gallery = asking if len(set(versions)) == 1 else "half refreshed"
        add(gallery, RAW, rows, scores)
        number = np.arange(len(rows))
        for n, beta in SETTINGS:
            levels = np.stack([background_level(queries[asking] @ chance[each].T, n) for each in versions])
            for name, version in ((OWN, of), (OTHER, 1 - of)):
                if name == OWN or gallery == "half refreshed":
                    less = subtract_background(scores, number, version[rows], levels, beta)
                    add(gallery, f"{name}, n = {n}, beta = {beta:g}", rows, less)

    for name in embeds:
        scores, rows = top_k(queries[name], vectors[name], 1)
        adjusted(name, rows[:, 0], scores[:, 0], [name, name], np.zeros(len(keys), np.int64))
    new = np.zeros(len(keys), np.int64)
    new[np.random.default_rng(seed).permutation(len(keys))[: len(keys) // 2]] = 1
    mixture = np.where(new[:, None] == 1, vectors[MOVED], vectors[NETWORK])
    scores, rows = top_k(queries[MOVED], mixture, 1)
    adjusted(MOVED, rows[:, 0], scores[:, 0], [NETWORK, MOVED], new)


def rows_of(measured: Scores) -> list[Row]:
    """A row for each gallery and kind of scores, means over the seeds; `against` is the same gallery's raw scores."""
    rows = []
    for (gallery, scores), each in measured.items():
        mean, raw = statistics.fmean(each), statistics.fmean(measured[gallery, RAW])
        spread = f"{min(each):.3f} to {max(each):.3f} over {len(each)} seeds"
        rows.append(
            Row(
                0,
                f"micro-AP of cosines, {gallery}, {scores}: {spread}",
                mean,
                "",
                f"{RAW} {raw:.3f}",
                mean / raw,
            )
        )
    return rows
