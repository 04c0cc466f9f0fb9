"""A new encoder under frozen downstream modules: adapters inside it, maps behind it, and a head trained anew."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.result import Row, document
from models import adapters
from models.artifact import load_manifest
from models.datasets import glyphs
from models.downstream import ClassificationHead, TextTower, fit_head, fit_text_tower
from models.encoders import load_encoder
from models.taca.network import trained_parameters
from models.taca.training import AdaptOptions, adapt_encoder
from models.training import Pictures, TrainingOptions, train_encoder

F32 = npt.NDArray[np.float32]
Say = Callable[[str], Any]

FOLDER = Path("bench-results")
TEST_FACES = ("STIXGeneral", "STIXGeneralBol", "DejaVuSerif-Italic")
"""Never trained on by anybody."""
OLD_DIM, NEW_DIM = 48, 96
OLD, PROCRUSTES, LINEAR, MLP = "old encoder", "Procrustes behind", "linear map behind", "MLP map behind"
PLACED = {f"adapters, {name}": name for name in ("serial", "parallel", "symmetric")}
RETRAINED = "modules trained anew on the new encoder"
ARMS = (OLD, PROCRUSTES, LINEAR, MLP, *PLACED, RETRAINED)
METRICS = ("accuracy of the frozen head", "mAP of text to image")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        classes: characters; the old model is trained on the first `old_share` of them, all else on all.
        batch_size: of both encoders and of their adapters; `steps` of the frozen modules.
        rank: of serial and parallel adapters; symmetric ones, two a layer, have half of it.
        contrasts: lambdas; the first is the one all arms are compared at, others are measured with `parallel` alone.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    classes: int = 100
    old_share: float = 0.5
    old: Mapping[str, Any] = field(default_factory=lambda: {"patch": 8, "width": 48, "depth": 2, "heads": 4})
    new: Mapping[str, Any] = field(default_factory=lambda: {"patch": 8, "width": 96, "depth": 4, "heads": 4})
    old_epochs: float = 16
    new_epochs: float = 30
    adapt_epochs: float = 8
    rank: int = 16
    map_hidden: int = 128
    batch_size: int = 32
    steps: int = 600
    contrasts: tuple[float, ...] = (1.0, 0.0)


FULL = Sizes()
QUICK = Sizes(
    seeds=(0,), classes=24, old={"patch": 16, "width": 16, "depth": 1, "heads": 2},
    new={"patch": 16, "width": 24, "depth": 2, "heads": 2}, old_epochs=2, new_epochs=3, adapt_epochs=1, rank=4, map_hidden=8,
    steps=40,
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Pictures of characters that every test face holds; a label is the character's Unicode name."""

    train: Pictures
    test: Pictures
    old_classes: frozenset[str]

    @cached_property
    def old_train(self) -> Pictures:
        """What the old model is trained on."""
        rows = [row for row, label in enumerate(self.train.labels) if label in self.old_classes]
        return Pictures(self.train.pixels[rows], tuple(self.train.labels[row] for row in rows))


@dataclass(frozen=True)
class Measured:
    """Of one arm and seed: the two metrics, what was trained for it, and how long that took."""

    values: tuple[float, float]
    parameters: int = 0
    seconds: float = 0.0


def run(*, quick: bool = False, say: Say = lambda text: None, folder: Path = FOLDER) -> dict[str, Any]:
    """Measure every arm on each seed, write <folder>/taca.json, and return the same document.

    Args:
        quick: one seed of very small models: to see that it works, not to quote.
        say: told what is done next.
    """
    sizes = QUICK if quick else FULL
    world = load(sizes)
    measured: dict[str, list[Measured]] = {}
    started = time.perf_counter()
    for seed in sizes.seeds:
        with tempfile.TemporaryDirectory(prefix="bench-taca-") as scratch:
            for arm, found in of_seed(world, sizes, seed, Path(scratch), say).items():
                measured.setdefault(arm, []).append(found)
    doc = document(
        "taca",
        rows(measured),
        quick=quick,
        seeds=list(sizes.seeds),
        classes=len(world.train.classes),
        train_pictures=len(world.train.labels),
        test_pictures=len(world.test.labels),
        seconds=round(time.perf_counter() - started, 1),
    )
    doc["arms"] = {
        arm: {"parameters": each[0].parameters, "seconds": [round(one.seconds, 1) for one in each]}
        for arm, each in measured.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "taca.json").write_text(json.dumps(doc, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return doc


def load(sizes: Sizes) -> World:
    """Classes in the dataset's own order, those alone that all test faces hold and Unicode names."""
    everything = glyphs.catalogue()
    faces: dict[int, set[str]] = {}
    for face, label in zip(everything.faces, everything.classes, strict=True):
        faces.setdefault(label, set()).add(face)
    known = sorted(
        (label for label, held in faces.items() if held.issuperset(TEST_FACES) and name_of(label)),
        key=glyphs.order_key,
    )[: sizes.classes]
    wanted = set(known)
    parts: dict[bool, list[int]] = {False: [], True: []}
    for row, (face, label) in enumerate(zip(everything.faces, everything.classes, strict=True)):
        if label in wanted:
            parts[face in TEST_FACES].append(row)
    # Faces of one family draw some symbols alike: what was trained on, to the pixel, is no test.
    seen = {everything.pixels[row].tobytes() for row in parts[False]}
    parts[True] = [row for row in parts[True] if everything.pixels[row].tobytes() not in seen]
    train, test = (
        Pictures(everything.pixels[each][:, None], tuple(name_of(everything.classes[row]) for row in each))
        for each in parts.values()
    )
    old = known[: round(sizes.old_share * len(known))]
    return World(train, test, frozenset(map(name_of, old)))


def name_of(code: int) -> str:
    """Its Unicode name, "" where it has none."""
    return unicodedata.name(chr(code), "")


def of_seed(world: World, sizes: Sizes, seed: int, scratch: Path, say: Say) -> dict[str, Measured]:
    """All arms of one seed, under one head and one text tower that nothing changes."""
    old, new = scratch / "old", scratch / "new"
    say(f"seed {seed}: old encoder")
    _train(world.old_train, old, sizes.old, OLD_DIM, sizes.old_epochs, sizes.batch_size, seed)
    say(f"seed {seed}: new encoder")
    _train(world.train, new, sizes.new, NEW_DIM, sizes.new_epochs, sizes.batch_size, seed + 1000)
    seen, asked = (_embedded(folder, world.train) for folder in (old, new))
    head, tower = _modules(seen, world.train, sizes, seed)
    digests = head.digest, tower.digest
    found = {OLD: Measured(_judged(head, tower, _embedded(old, world.test), world.test))}
    say(f"seed {seed}: maps")
    found[PROCRUSTES] = _procrustes(world, old, new, (seen, asked), (head, tower), scratch, seed)
    jobs = _jobs(sizes)
    for arm, options in jobs.items():
        say(f"seed {seed}: {arm}")
        found[arm] = _adapted(world, old, new, (head, tower), options, scratch / "adapted", seed)
    own = _modules(asked, world.train, sizes, seed)
    found[RETRAINED] = Measured(_judged(*own, _embedded(new, world.test), world.test))
    assert digests == (head.digest, tower.digest), "a frozen module was changed"
    return found


def _jobs(sizes: Sizes) -> dict[str, AdaptOptions]:
    """What is trained by the loss of `models.taca`, by arm."""
    common = AdaptOptions(
        "none", 0, contrast=sizes.contrasts[0], epochs=sizes.adapt_epochs, batch_size=sizes.batch_size
    )
    jobs = {LINEAR: common, MLP: replace(common, map_hidden=sizes.map_hidden)}
    for arm, placement in PLACED.items():
        rank = sizes.rank // 2 if placement == "symmetric" else sizes.rank
        jobs[arm] = replace(common, placement=placement, rank=rank)
    for contrast in sizes.contrasts[1:]:
        title = f"adapters, parallel, lambda {contrast:g}"
        jobs[title] = replace(common, placement="parallel", rank=sizes.rank, contrast=contrast)
    return jobs


def _train(
    pictures: Pictures,
    folder: Path,
    network: Mapping[str, Any],
    dim: int,
    epochs: float,
    batch_size: int,
    seed: int,
) -> None:
    options = TrainingOptions(
        "vit", network, dim, epochs=epochs, batch_size=batch_size, learning_rate=1e-3, temperature=0.1
    )
    train_encoder(pictures, folder, name=folder.name, options=options, seed=seed)


def _modules(
    features: F32, pictures: Pictures, sizes: Sizes, seed: int
) -> tuple[ClassificationHead, TextTower]:
    """The head and the text tower for embeddings of the training pictures."""
    return (
        fit_head(features, pictures.labels, steps=sizes.steps, seed=seed),
        fit_text_tower(features, pictures.labels, steps=sizes.steps, seed=seed),
    )


def _embedded(folder: Path, pictures: Pictures) -> F32:
    return load_encoder(folder).encode(pictures.pixels)  # type: ignore[arg-type]


def _judged(
    head: ClassificationHead, tower: TextTower, features: F32, pictures: Pictures
) -> tuple[float, float]:
    return head.evaluate(features, pictures.labels), tower.evaluate(features, pictures.labels)


def _procrustes(
    world: World,
    old: Path,
    new: Path,
    features: tuple[F32, F32],
    modules: tuple[ClassificationHead, TextTower],
    scratch: Path,
    seed: int,
) -> Measured:
    """From the new space to the old one, by the embeddings of the training pictures as they are."""
    started = time.perf_counter()
    adapters.fit_adapter(
        "procrustes",
        features[1],
        features[0],
        folder=scratch / "procrustes",
        name="procrustes",
        modality="image",
        source_fingerprint=load_manifest(new).fingerprint,
        target_fingerprint=load_manifest(old).fingerprint,
        seed=seed,
    )
    taken = time.perf_counter() - started
    mapped, _ = adapters.load_adapter(scratch / "procrustes").transform(_embedded(new, world.test))
    return Measured(_judged(*modules, mapped, world.test), NEW_DIM * OLD_DIM + NEW_DIM + OLD_DIM, taken)


def _adapted(
    world: World,
    old: Path,
    new: Path,
    modules: tuple[ClassificationHead, TextTower],
    options: AdaptOptions,
    folder: Path,
    seed: int,
) -> Measured:
    texts = modules[1].encode(world.train.classes)
    manifest = adapt_encoder(
        world.train, new, old, folder, name="adapted", texts=texts, options=options, seed=seed
    )
    shape = {name: manifest.options[name] for name in ("placement", "rank", "map_hidden")}
    count = trained_parameters(manifest.options["network"], NEW_DIM, OLD_DIM, **shape)
    values = _judged(*modules, _embedded(folder, world.test), world.test)
    return Measured(values, count, float(manifest.training["seconds"]))


def rows(measured: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """Two rows an arm, means over the seeds; `against` is the old encoder."""
    table = []
    for place, metric in enumerate(METRICS):
        first = statistics.fmean(one.values[place] for one in measured[OLD])
        for arm, each in measured.items():
            values = [one.values[place] for one in each]
            mean = statistics.fmean(values)
            spread = f"{min(values):.3f} to {max(values):.3f} over {len(values)} seeds"
            ratio = mean / first if first else None
            table.append(Row(0, f"{metric}, {arm}: {spread}", mean, "", f"{OLD} {first:.3f}", ratio))
    return table
