"""Pre-training by overlap rates on clips: what the heads learn, and what the backbone is worth in video retrieval."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench import result
from bench.upgrades.job import code_digest
from bench.upgrades.summary import Figure
from bench.upgrades.table import cell, table
from models.datasets import Item, list_items, read_item
from models.encoders import load_encoder
from models.encoders.videos import VideoPreprocessing
from models.errors import UsageError
from models.pretraining.cstp_loss import Weights
from models.pretraining.cstp_probe import HEADS, right_answers
from models.pretraining.cstp_sampler import TIME_ALONE
from models.pretraining.cstp_training import CstpTraining, PretrainingOptions, read_videos, save_encoder
from models.pretraining.cstp_views import Looks
from models.training import TrainingOptions, fixed_threads, read_pictures, train_encoder
from orchestrator.core.metrics import Relevance, evaluate

Say = Callable[[str], None]
F32 = npt.NDArray[np.float32]
Videos = Sequence[npt.NDArray[np.uint8]]

FOLDER = Path("bench-results/cstp")
TEMPORAL_ALONE = "temporal, learned alone from whole frames"
ASKED = (*HEADS, TEMPORAL_ALONE)
DATA = ("moving-glyphs", "atari")
"""Sources with the splits train, gallery and queries, these of classes that are not trained on; the first unless asked for."""
SEEDS = (0, 1, 2)
THREADS = 1
SEEN = VideoPreprocessing(frames=8, size=32, mode="L")
PRETRAINING = PretrainingOptions(preprocessing=SEEN, epochs=24.0)
SUPERVISED = TrainingOptions(
    architecture="r2plus1d", network={"width": 8}, dim=64, preprocessing=SEEN, epochs=12.0, batch_size=24,
    temperature=0.15,
)  # fmt: skip
ALONE = replace(
    PRETRAINING,
    rules=TIME_ALONE,
    looks=Looks(flip=0.0, strong=0.0),
    weights=Weights(0.0, 0.0, 1.0, 0.0, 0.0),
    epochs=100.0,
)
"""A check of the temporal label: nothing but time differs between the clips, and nothing else is learned."""
PROBE_ROUNDS = 5
SYSTEMS = ("random", "cstp", "v1", "v2", "v2 from random", "v2 on v1", "v2 from random on v1")
"""Whose queries search whose gallery; "on v1": the embeddings of v1, before any of them is refreshed."""


def run(
    *,
    only: Sequence[str] = (),
    say: Say | None = None,
    folder: Path = FOLDER,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, Any]:
    """Measure the seeds that are not measured yet, write <folder>/{cstp.json,cstp.md}; the document.

    Args:
        only: sources of DATA; empty: the first.

    Raises:
        UsageError: no such source, or what makes it is not installed.
    """
    sources = list(only or DATA[:1])
    if unknown := set(sources) - set(DATA):
        raise UsageError(f"this benchmark has no part {min(unknown)[:80]!r}; there are {', '.join(DATA)}.")
    root = folder / code_digest()
    tables, made = [], []
    for source in sources:
        found = []
        for done, seed in enumerate(seeds, 1):
            started = time.monotonic()
            found.append(_once(root / source / f"seed-{seed}", seed, source))
            if say is not None:
                say(f"{source} {done}/{len(seeds)} seed {seed}: {time.monotonic() - started:.0f} s")
        tables.append(f"## {source}\n\n{markdown(found)}")
        made += rows(found, source)
    (folder / "cstp.md").write_text("\n".join(tables), encoding="utf-8")
    document = result.document(
        "cstp", made, seeds=list(seeds), code=root.name, threads=THREADS, table=str(folder / "cstp.md")
    )
    (folder / "cstp.json").write_text(json.dumps(document, indent=2))
    return document


def _once(folder: Path, seed: int, source: str) -> Mapping[str, Any]:
    kept = folder / "result.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(measure(folder, seed, source)))
    found: Mapping[str, Any] = json.loads(kept.read_text())
    return found


def measure(
    folder: Path,
    seed: int,
    source: str = DATA[0],
    *,
    pretraining: PretrainingOptions = PRETRAINING,
    alone: PretrainingOptions = ALONE,
    supervised: TrainingOptions = SUPERVISED,
    rounds: int = PROBE_ROUNDS,
) -> dict[str, Any]:
    """One seed: `heads`, each [right, asked, chance]; `retrieval`, of each system [R@1, R@5, mAP]; `seconds` of each training."""
    seconds: dict[str, float] = {}
    items = {split: list_items(source, split).items for split in ("train", "gallery", "queries")}
    shown = [read_videos(items[split], pretraining.preprocessing) for split in ("train", "queries")]
    heads = _pretrained(folder, seed, shown[0], shown[1], pretraining, rounds, seconds)
    heads[TEMPORAL_ALONE] = time_alone(seed, shown[0], shown[1], alone, rounds, seconds)
    pictures = read_pictures(items["train"], supervised.preprocessing)

    def train(name: str, *, draw: int, method: str = "independent", init: str | None = None) -> None:
        started = time.monotonic()
        options = supervised if method == "independent" else replace(supervised, temperature=0.1)
        train_encoder(
            pictures, folder / name, name=name, method=method, options=options, seed=draw, threads=THREADS,
            old=folder / "v1" if method != "independent" else None, init=folder / init if init else None,
        )  # fmt: skip
        seconds[name] = time.monotonic() - started

    train("v1", draw=seed)
    train("v2", draw=seed + 1000, method="bct", init="cstp")
    train("v2 from random", draw=seed + 1000, method="bct")
    names = [name for name in SYSTEMS if not name.endswith(" on v1")]
    stored = _embedded([folder / name for name in names], items["queries"], items["gallery"])
    relevance = Relevance.from_labels(
        *([item.label for item in items[split]] for split in ("queries", "gallery"))
    )
    retrieval = {}
    for system in SYSTEMS:
        asking = system.removesuffix(" on v1")
        retrieval[system] = _retrieved(
            stored[asking][0], stored["v1" if system != asking else asking][1], relevance
        )
    return {"seed": seed, "heads": heads, "retrieval": retrieval, "seconds": seconds}


def _pretrained(
    folder: Path,
    seed: int,
    videos: Videos,
    unseen: Videos,
    options: PretrainingOptions,
    rounds: int,
    seconds: dict[str, float],
) -> dict[str, tuple[int, int, float]]:
    """Artifacts `random`, the backbone as drawn, and `cstp`; what the heads know of the classes nobody trained on."""
    started = time.monotonic()
    with fixed_threads(THREADS), torch.random.fork_rng():
        torch.manual_seed(seed)
        training = CstpTraining(videos, options, seed)
        said: dict[str, Any] = {"seed": seed}
        save_encoder(training.finish(), folder / "random", name="random", options=options, training=said)
        while training.done < training.steps:
            training.step()
        seconds["cstp"] = time.monotonic() - started
        sizes = {"length": options.preprocessing.frames, "size": options.preprocessing.size}
        hits = right_answers(training.network, unseen, rounds=rounds, seed=seed + 1, **sizes)
        save_encoder(training.finish(), folder / "cstp", name="cstp", options=options, training=said)
    return {head: (one.right, one.asked, one.chance_ratio) for head, one in hits.items()}


def time_alone(
    seed: int,
    videos: Videos,
    unseen: Videos,
    options: PretrainingOptions,
    rounds: int,
    seconds: dict[str, float],
) -> tuple[int, int, float]:
    """Right answers, asked, chance: of a temporal head that learned alone, from whole clips, asked about unseen ones."""
    started = time.monotonic()
    with fixed_threads(THREADS), torch.random.fork_rng():
        torch.manual_seed(seed)
        training = CstpTraining(videos, options, seed)
        while training.done < training.steps:
            training.step()
        hits = right_answers(
            training.network, unseen, rounds=rounds, seed=seed + 1, rules=options.rules,
            length=options.preprocessing.frames, size=options.preprocessing.size,
        )["temporal"]  # fmt: skip
    seconds["time alone"] = time.monotonic() - started
    return hits.right, hits.asked, hits.chance_ratio


def _embedded(
    artifacts: Sequence[Path], queries: Sequence[Item], gallery: Sequence[Item]
) -> dict[str, tuple[F32, F32]]:
    """Name -> embeddings of the queries and of the gallery; each clip is read once."""
    encoders = {artifact.name: load_encoder(artifact) for artifact in artifacts}
    found: dict[str, list[F32]] = {name: [] for name in encoders}
    with fixed_threads(THREADS):
        for items in (queries, gallery):
            prepared: dict[str, list[Any]] = {name: [] for name in encoders}
            for item in items:
                clip = read_item(item.uri)
                for name, encoder in encoders.items():
                    prepared[name].append(encoder.preprocess(clip))
            for name, encoder in encoders.items():
                found[name].append(np.asarray(encoder.encode(prepared[name])))
    return {name: (both[0], both[1]) for name, both in found.items()}


def _retrieved(queries: F32, gallery: F32, relevance: Relevance) -> tuple[float, float, float]:
    """R@1, R@5 and mAP: each query video asks for the gallery's videos of its class, by cosine."""
    first = evaluate(queries, gallery, relevance, average_precision=True)
    first_five = evaluate(queries, gallery, relevance, 5)
    values = first.recall, first_five.recall, first.mean_average_precision
    assert None not in values, "every class of the queries is in the gallery"
    return tuple(value or 0.0 for value in values)  # type: ignore[return-value]


def rows(found: Sequence[Mapping[str, Any]], source: str = DATA[0]) -> list[result.Row]:
    """A row a head against chance, and one a system against the backbone as drawn. Nothing is a target."""
    made = []
    for head in ASKED:
        right, asked, chance = _pooled(found, head)
        low, high = wilson(right, asked)
        made.append(
            result.Row(
                0,
                f"{source}: {head} head on unseen clips, {asked} asked, 95 % {low:.3f} to {high:.3f}",
                round(right / asked, 4),
                "share right",
                f"chance {chance:.3f}",
                round(right / asked / chance, 2),
            )
        )
    base = _figure(found, "random", 0)
    for system in SYSTEMS:
        figure = _figure(found, system, 0)
        assert figure.mean is not None
        assert base.mean is not None
        made.append(
            result.Row(
                0,
                f"{source}: {system}, {len(found)} seeds, {cell(figure)}",
                round(figure.mean, 4),
                "R@1",
                f"random-initialised {cell(base)}",
                round(figure.mean / base.mean, 2) if base.mean else None,
            )
        )
    return made


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: the heads, all seeds' pairs together; retrieval, mean ± half width of the 95 % interval over the seeds."""
    heads = []
    for head in ASKED:
        right, asked, chance = _pooled(found, head)
        low, high = wilson(right, asked)
        each = " / ".join(f"{one['heads'][head][0] / one['heads'][head][1]:.3f}" for one in found)
        heads.append(
            [head, f"{right / asked:.3f}", f"{low:.3f} to {high:.3f}", f"{chance:.3f}", each, str(asked)]
        )
    systems = [[system, *(cell(_figure(found, system, metric)) for metric in range(3))] for system in SYSTEMS]
    return (
        "\n\n".join(
            [
                table(["head", "right", "95 %", "chance", "seeds", "asked"], heads),
                table(["system", "R@1", "R@5", "mAP"], systems),
            ]
        )
        + "\n"
    )


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    share, spread = right / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / asked + spread / asked / 4) / (1 + spread)
    return middle - half, middle + half


def _pooled(found: Sequence[Mapping[str, Any]], head: str) -> tuple[int, int, float]:
    right, asked = (sum(one["heads"][head][at] for one in found) for at in (0, 1))
    return right, asked, max(one["heads"][head][2] for one in found)


def _figure(found: Sequence[Mapping[str, Any]], system: str, metric: int) -> Figure:
    return Figure("", "", "", "", "", tuple(one["retrieval"][system][metric] for one in found))
