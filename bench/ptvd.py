"""Plots of PTVD's layout, refreshed from one encoder's features to another's: texts ask for segments, and segments for texts.

The data is made of verses (`bench.ptvd_verses`): far easier than video, so what is to be seen is how recall moves with the
refresh and by which measure of what is right, not how good it is.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import result
from bench.ptvd_verses import write_plots
from bench.upgrades.table import table
from models.datasets import list_items, read_item
from models.datasets.ptvd_source import PlotSegment
from models.datasets.ptvd_tasks import exact_pairs, overlapping_pairs
from models.encoders import load_encoder, stored_features, text_tower
from models.training import fixed_threads
from orchestrator.core.cross_retrieval import CUTS, CrossRetrieval, cross_retrieval
from orchestrator.core.metrics import Relevance

Say = Callable[[str], None]
F32 = npt.NDArray[np.float32]

FOLDER = Path("bench-results/ptvd")
SEEDS = (0, 1, 2)
EPISODES, STEPS, LEAST_OVERLAP = 40, 200, 0.5
STATES = ("old", "half refreshed", "new")
"""The start of a refresh is "old": one frozen tower asks both versions."""
DIRECTIONS = ("texts ask for segments", "segments ask for texts")
MEASURES = ("its own segment", f"overlap of {LEAST_OVERLAP} or more")
Found = dict[tuple[str, str, str], list[CrossRetrieval]]
"""Direction, measure, state -> one a seed."""


def run(
    *, say: Say | None = None, folder: Path = FOLDER, seeds: Sequence[int] = SEEDS, episodes: int = EPISODES,
    steps: int = STEPS,
) -> dict[str, Any]:  # fmt: skip
    """Measure, write <folder>/{ptvd.json,ptvd.md}; the document.

    Args:
        seeds: of the tower's training, and of which half is refreshed first.
        episodes: of which a fifth, by a hash of their names, are the gallery; steps: of the tower's training.
    """
    tell = say or (lambda text: None)
    found: Found = {}
    with TemporaryDirectory() as scratch, fixed_threads(1):
        tell("features")
        source = f"ptvd:{write_plots(Path(scratch) / 'data', episodes=episodes)}"
        for seed in seeds:
            tell(f"seed {seed}: tower, both directions")
            _measure(Path(scratch) / f"seed-{seed}", source, seed, steps, found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ptvd.md").write_text(markdown(found), encoding="utf-8")
    n = next(iter(found.values()))[0].n
    document = result.document(
        "ptvd", rows(found), seeds=list(seeds), episodes=episodes, queries=n, table=str(folder / "ptvd.md")
    )
    (folder / "ptvd.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _measure(folder: Path, source: str, seed: int, steps: int, found: Found) -> None:
    """One tower, fitted on the training episodes' old features; each state of the gallery asked by both directions."""
    stored_features.create(folder / "old", "old", "wl64", source, None, None)
    old = load_encoder(folder / "old")
    stored_features.create(folder / "new", "new", "wl256", source, "train", old)
    new = load_encoder(folder / "new")
    known = _segments(source, "train")
    text_tower.create(
        folder / "tower", "tower", old.encode([old.preprocess(each) for each in known]),
        [each.sentence for each in known], steps=steps, seed=seed, progress=lambda done, total: None,
    )  # fmt: skip
    tower = load_encoder(folder / "tower")
    asked = _segments(source, "test")
    texts = tower.encode([tower.preprocess(each.sentence) for each in asked])
    stored = {
        name: encoder.encode([encoder.preprocess(each) for each in asked])
        for name, encoder in (("old", old), ("new", new))
    }
    first = np.random.default_rng(seed).permutation(len(asked))[: len(asked) // 2]
    half = stored["old"].copy()
    half[first] = stored["new"][first]
    for state, vectors in zip(STATES, (stored["old"], half, stored["new"]), strict=True):
        for measure, relevance in _relevances([each.segment for each in asked]).items():
            scores = texts @ vectors.T
            for direction, matrix in zip(DIRECTIONS, (scores, scores.T), strict=True):
                found.setdefault((direction, measure, state), []).append(cross_retrieval(matrix, relevance))


def _segments(source: str, split: str) -> list[PlotSegment]:
    read = [read_item(item.uri) for item in list_items(source, split).items]
    return [each for each in read if isinstance(each, PlotSegment)]


def _relevances(segments: Sequence[Any]) -> Mapping[str, Relevance]:
    """Both measures are symmetric, so they hold for both directions."""
    pairs = exact_pairs(segments, segments), overlapping_pairs(segments, segments, least=LEAST_OVERLAP)
    return {
        name: Relevance.from_pairs(len(segments), *each) for name, each in zip(MEASURES, pairs, strict=True)
    }


def rows(found: Found) -> list[result.Row]:
    """Recall at 1 of each state beside the old one's. Nothing is a target."""
    made = []
    for (direction, measure, state), each in found.items():
        mean = _mean(each, 0)
        base = _mean(found[direction, measure, STATES[0]], 0)
        made.append(
            result.Row(
                0, f"{direction}, {measure}, {state}, {len(each)} seeds", round(mean, 4), "R@1", f"old {base:.3f}",
                round(mean / base, 3) if base else None,
            )
        )  # fmt: skip
    return made


def markdown(found: Found) -> str:
    """Recall at each cut and the median rank, mean over the seeds (lowest to highest of R@1)."""
    lines = []
    for (direction, measure, state), each in found.items():
        ones = [_recall(one, 0) for one in each]
        ranks = statistics.mean(one.median_rank or 0 for one in each)
        recalls = [f"{_mean(each, at):.3f}" for at in range(len(CUTS))]
        recalls[0] += f" ({min(ones):.3f}–{max(ones):.3f})"
        lines.append([direction, measure, state, *recalls, f"{ranks:.1f}"])
    heads = ["", "right is", "gallery", *(f"R@{cut}" for cut in CUTS), "median rank"]
    return table(heads, lines) + "\n"


def _mean(found: Sequence[CrossRetrieval], cut: int) -> float:
    return statistics.mean(_recall(one, cut) for one in found)


def _recall(found: CrossRetrieval, cut: int) -> float:
    return found.hits[cut] / found.n
