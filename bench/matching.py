"""Copy detection on edited copies of real photographs: what each branch and the mirror add, by micro-AP and recall@P90."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import matching_background
from bench.result import Row, document
from models.datasets import Item, copies, list_items, read_item
from models.matching import CROP, WHOLE, Branch, Query, ScoredPair
from models.matching.branches import GlobalBranch, LocalBranch
from models.matching.local import Features, Sift, opencv
from models.matching.matcher import MatchVerifier
from models.matching.merge import find_copies
from models.matching.overlay import RectangleFinder, overlay_of
from models.matching.search import LocalIndex, nearest_vectors
from orchestrator.core.background import background_level, subtract_background
from orchestrator.core.matching_metrics import MatchingMetrics, matching_metrics

F32 = npt.NDArray[np.float32]
Say = Callable[[str], None]

FOLDER = Path("bench-results")
CONFIDENCE = 0.5
NEIGHBOUR, BETA = 5, 1.0
"""Of a background of 16; the challenge's baseline takes the 10th of a million, and twice its score."""
THUMBNAIL = 16

GLOBAL, LESS_BACKGROUND = "global, cosine", "global, cosine less background"
VERIFIED, LOCAL, CROPPED = "global, matches counted", "+ local", "+ crop"
MIRRORED, MIRRORED_VOTES = "+ mirror in the count", "+ mirror in the votes"
ARMS = (GLOBAL, LESS_BACKGROUND, VERIFIED, LOCAL, CROPPED, MIRRORED, MIRRORED_VOTES)


@dataclass(frozen=True)
class World:
    """The features of one seed.

    `plain` are the queries as they are, `cropped` with what the detector found; both embedded from what they look at.
    """

    references: Mapping[str, Features]
    vectors: F32
    plain: Sequence[Query]
    cropped: Sequence[Query]
    background: F32
    labels: Mapping[str, str]
    edits: Mapping[str, str]

    @property
    def truth(self) -> list[tuple[str, str]]:
        return [(key, label) for key, label in self.labels.items() if label in self.references]


def run(*, quick: bool = False, say: Say | None = None, folder: Path = FOLDER) -> dict[str, Any]:
    """Measure every arm on each seed of the dataset, write <folder>/matching.json, and return the same document.

    Args:
        quick: one seed, a twelfth of the queries and 24 references: to see that it works, not to quote.
        say: told what is measured next.
    """
    tell = say or (lambda text: None)
    opencv().setNumThreads(1)
    measured: dict[str, list[MatchingMetrics]] = {arm: [] for arm in ARMS}
    found: dict[str, Counter[str]] = {arm: Counter() for arm in ARMS}
    asked: Counter[str] = Counter()
    detected: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    by_background: matching_background.Scores = {}
    seeds = copies.SPLITS[:1] if quick else copies.SPLITS
    for seed in seeds:
        tell(f"seed {seed}: features")
        started = time.perf_counter()
        world = load(seed, 12 if quick else 1)
        seconds["features"] += time.perf_counter() - started
        asked.update(world.edits[query] for query, _ in world.truth)
        detected.update(world.edits[q.key] == "overlay" for q in world.cropped if q.crop is not None)
        tell(f"seed {seed}: branches")
        started = time.perf_counter()
        for arm, pairs in answers(world).items():
            measured[arm].append(judge(world, pairs))
            found[arm].update(right(world, pairs, measured[arm][-1]))
        seconds["branches"] += time.perf_counter() - started
        tell(f"seed {seed}: background")
        _by_background(world, seed, by_background)
    doc = document(
        "matching",
        rows(measured) + matching_background.rows_of(by_background),
        quick=quick,
        seeds=list(seeds),
        **about(seconds, detected, len(seeds)),
    )
    doc["found_at_p90_by_edit"] = {
        arm: {edit: f"{found[arm][edit]}/{asked[edit]}" for edit in copies.EDITS} for arm in ARMS
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(doc, indent=2, ensure_ascii=False) + "\n"
    (folder / "matching.json").write_text(text, encoding="utf-8")
    return doc


def load(seed: str, every: int = 1) -> World:
    """The world of a seed; with `every` over 1 the queries of each such region, among the references copied from alone."""
    sift, detector = Sift(), RectangleFinder()
    asked = _items("queries", seed)
    regions = list(dict.fromkeys(item.label for item in asked))
    known = [item for item in _items("references", seed) if every == 1 or item.label in regions]
    references = {item.label or "": _picture(item) for item in known}
    background = np.stack([thumbnail(_picture(item)) for item in _items("background", seed)])
    plain, cropped = [], []
    for item in (item for item in asked if item.label in regions[::every]):
        picture = _picture(item)
        overlay = overlay_of(picture, detector, CONFIDENCE)
        whole = sift(picture)
        plain.append(Query(item.key, whole, None, thumbnail(picture)))
        cropped.append(
            plain[-1]
            if overlay is None
            else Query(item.key, whole, sift(overlay), thumbnail(overlay))
        )  # fmt: skip
    used = {query.key for query in plain}
    return World(
        {name: sift(picture) for name, picture in references.items()},
        np.stack([thumbnail(picture) for picture in references.values()]),
        plain,
        cropped,
        background,
        {item.key: item.label or "" for item in asked if item.key in used},
        {item.key: item.attributes["edit"] for item in asked if item.key in used},
    )


def thumbnail(picture: Image.Image) -> F32:
    """(256,) the embedding: 16 x 16 grey means, less their mean, L2-normalised.

    No model for photographs comes with a package, and one trained on these few would say more of the training than of
    copies. This one needs none, is the same everywhere, and fails where global embeddings fail first: crops and flips.
    """
    small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, np.float32).reshape(-1)
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


def answers(world: World) -> dict[str, list[ScoredPair]]:
    """What each arm reports."""
    keys = list(world.references)
    index = LocalIndex(world.references)
    by_vector = Kept(GlobalBranch(keys, world.vectors))
    whole, crop = Kept(LocalBranch(index, WHOLE)), Kept(LocalBranch(index, CROP))
    turned = [LocalBranch(index, view, mirrored=True) for view in (WHOLE, CROP)]
    plain, cropped = world.plain, world.cropped
    verify = {m: Once(world.references, cropped, m) for m in (False, True)}
    verify_plain = Once(world.references, plain, False)
    return {
        **by_cosine(world, keys),
        VERIFIED: find_copies([by_vector], verify_plain, plain),
        LOCAL: find_copies([by_vector, whole], verify_plain, plain),
        CROPPED: find_copies([by_vector, whole, crop], verify[False], cropped),
        MIRRORED: find_copies([by_vector, whole, crop], verify[True], cropped),
        MIRRORED_VOTES: find_copies([by_vector, *turned], verify[True], cropped),
    }


class Kept:
    """A branch that remembers: arms ask it the same again. Whole and cropped queries are different lists."""

    def __init__(self, branch: Branch) -> None:
        self.name, self._branch = branch.name, branch
        self._kept: dict[int, list[Any]] = {}

    def candidates(self, queries: Sequence[Query]) -> list[Any]:
        if id(queries) not in self._kept:
            self._kept[id(queries)] = self._branch.candidates(queries)
        return self._kept[id(queries)]


class Once(MatchVerifier):
    """A verifier that counts a pair once for all arms."""

    def __init__(self, references: Mapping[str, Features], queries: Sequence[Query], mirrored: bool) -> None:
        super().__init__(references, {query.key: query for query in queries}, mirrored=mirrored)
        self._kept: dict[Any, float] = {}

    def score(self, pair: Any) -> float:
        if pair not in self._kept:
            self._kept[pair] = super().score(pair)
        return self._kept[pair]


def by_cosine(world: World, keys: Sequence[str]) -> dict[str, list[ScoredPair]]:
    """The global branch with its own scores, raw and less those of the background."""
    embedded = np.stack([query.embedding for query in world.plain if query.embedding is not None])
    rows, cosines = nearest_vectors(embedded, world.vectors)
    level = background_level(embedded @ world.background.T, NEIGHBOUR)
    number = np.arange(len(embedded))
    less = subtract_background(cosines, number, 0 * number, level[None], BETA)
    return {
        arm: [
            ScoredPair(query.key, keys[row], float(score))
            for query, row, score in zip(world.plain, rows, scores, strict=True)
        ]
        for arm, scores in ((GLOBAL, cosines), (LESS_BACKGROUND, less))
    }


def judge(world: World, pairs: Sequence[ScoredPair]) -> MatchingMetrics:
    """The metrics of what an arm reports."""
    queries, references = zip(*world.truth, strict=True)
    said = [pair.query for pair in pairs], [pair.reference for pair in pairs], [pair.score for pair in pairs]
    return matching_metrics(queries, references, *said)


def right(world: World, pairs: Sequence[ScoredPair], metrics: MatchingMetrics) -> list[str]:
    """The edits of the true pairs that an arm reports at the threshold of precision 0.9."""
    truth = set(world.truth)
    return [
        world.edits[pair.query]
        for pair in pairs
        if (pair.query, pair.reference) in truth
        and metrics.threshold is not None
        and pair.score >= metrics.threshold
    ]


def rows(measured: Mapping[str, Sequence[MatchingMetrics]]) -> list[Row]:
    """Two rows an arm, means over the seeds; `against` is the first arm."""
    table = []
    for name, values in (
        ("micro-AP", lambda m: m.micro_ap),
        ("recall@P90", lambda m: m.recall_at_precision or 0.0),
    ):
        first = statistics.fmean(map(values, measured[GLOBAL]))
        for arm in ARMS:
            each = [values(m) for m in measured[arm]]
            mean = statistics.fmean(each)
            spread = f"{min(each):.3f} to {max(each):.3f} over {len(each)} seeds"
            table.append(
                Row(
                    0,
                    f"{name}, {arm}: {spread}",
                    mean,
                    "",
                    f"{GLOBAL} {first:.3f}",
                    mean / first if first else None,
                )
            )
    return table


def about(seconds: Mapping[str, float], detected: Mapping[bool, int], n: int) -> dict[str, Any]:
    """What else the document says of the run."""
    return {
        "opencv": opencv().__version__,
        "features_s_a_seed": round(seconds["features"] / n, 1),
        "branches_s_a_seed": round(seconds["branches"] / n, 1),
        "overlays_detected": detected[True],
        "other_pictures_cropped": detected[False],
        "confidence": CONFIDENCE,
        "background": f"neighbour {NEIGHBOUR}, beta {BETA}",
    }


def _by_background(world: World, seed: str, into: matching_background.Scores) -> None:
    asked = {item.key: item for item in _items("queries", seed)}
    known = {item.label or "": item for item in _items("references", seed)}
    matching_background.measure(
        {"thumbnail": thumbnail, **matching_background.networks()},
        {name: _picture(known[name]) for name in world.references},
        [_picture(asked[query.key]) for query in world.plain],
        [world.labels[query.key] for query in world.plain],
        [_picture(item) for item in _items("background", seed)],
        int(seed),
        into,
    )


def _items(variant: str, seed: str) -> list[Item]:
    return list_items(f"copies:{variant}", seed).items


def _picture(item: Item) -> Image.Image:
    content = read_item(item.uri)
    assert isinstance(content, Image.Image)
    return content
