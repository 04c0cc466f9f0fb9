"""A small real world for engine tests: pictures on disk, tiny networks as models, a gallery with queries.

`old` and `kin` are one random network and the same network with weights moved a little: what compatible training aims
at, without training. `stranger` is another random network of the same dimension.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.artifact import save_artifact
from models.encoders import architecture_module
from models.encoders.images import ImagePreprocessing
from orchestrator.context import Context
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import ModelRow, RolloutRow
from orchestrator.service import advance, certify, embed, finish, galleries, models
from orchestrator.service import start as starting

CLASSES, PER_CLASS, EDGE = 40, 6, 16


def draw_pictures(folder: Path, per_class: int = PER_CLASS, seed: int = 0) -> Path:
    """CLASSES sub-folders of pictures: a random pattern each, with noise."""
    patterns = np.random.default_rng(1).integers(0, 255, (CLASSES, EDGE, EDGE))
    rng = np.random.default_rng(seed)
    for label, pattern in enumerate(patterns):
        (folder / f"class-{label:02d}").mkdir(parents=True)
        for number in range(per_class):
            noisy = np.clip(pattern + rng.normal(0, 12, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"class-{label:02d}" / f"{number}.png")
    return folder


def save_network(
    folder: Path, name: str, *, seed: int, moved: float = 0.0, dim: int = 32, kept: int | None = None
) -> Path:
    """The artifact of a random network, its weights moved by `moved` times their size.

    `kept`: of its outputs only so many are not zero, which makes it a bad model.
    """
    preprocessing = ImagePreprocessing(size=EDGE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = architecture_module("convnet").build({"widths": [8, 16]}, dim, preprocessing)
        torch.manual_seed(seed + 1000)
        with torch.no_grad():
            for weight in network.parameters():
                weight += moved * weight.abs().mean() * torch.randn_like(weight)
            if kept is not None:
                last = [each for each in network.modules() if isinstance(each, torch.nn.Linear)][-1]
                last.weight[kept:] = 0
                if last.bias is not None:
                    last.bias[kept:] = 0
    save_artifact(
        folder / name,
        network.state_dict(),
        kind="encoder",
        name=name,
        architecture="convnet",
        options={"widths": [8, 16]},
        modality="image",
        preprocessing=asdict(preprocessing),
        dim=dim,
    )
    return folder / name


def register_network(context: Context, folder: Path, name: str, **network: Any) -> ModelRow:
    """Save and register a network; see `save_network`."""
    return models.import_model(context, save_network(folder, name, **network), name)


def work(context: Context, rollout_id: int) -> RolloutRow:
    """Do in this process what a worker does, to the end."""
    from orchestrator.service.evaluate import evaluate_rollout
    from workers.drain import drain

    advance.advance(context, rollout_id)
    result = drain(context, rollout_id, owner="test")
    if result.failure is not None:
        raise result.failure
    evaluate_rollout(context, rollout_id, {})
    return finish.complete(context, rollout_id)


def plain_gallery(context: Context, tmp_path: Path) -> None:
    """Gallery `pics`, not embedded, and query set `asked`."""
    galleries.create_gallery(context, "pics", str(draw_pictures(tmp_path / "pictures")))
    galleries.import_query_set(context, "pics", "asked", str(draw_pictures(tmp_path / "queries", 3, seed=7)))


def embedded_gallery(context: Context, tmp_path: Path) -> None:
    """Gallery `pics` embedded by `old`, query set `asked`, and `kin` certified against `old`."""
    plain_gallery(context, tmp_path)
    register_network(context, tmp_path, "old", seed=0)
    register_network(context, tmp_path, "kin", seed=0, moved=0.02)
    assert work(context, embed.embed_gallery(context, "pics", "old").id).state == "finalized"
    certify_pair(context, "old", "kin")


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV file; returns its path."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return file


def import_logged(context: Context, tmp_path: Path, tenants: Sequence[str] = ("",)) -> None:
    """The 120 pictures of `asked` twice more: as `logged` without relevance, and as `clicked`, where 90 have a click.

    `tenants`: of the queries, in turn; an empty one is none.
    """
    pictures = sorted((tmp_path / "queries").rglob("*.png"))
    asked = [(f"q{n}", path, tenants[n % len(tenants)]) for n, path in enumerate(pictures)]
    clicked = [(f"q{n}", f"{path.parent.name}/0.png", 2) for n, path in enumerate(pictures) if n % 4]
    log = str(write_csv(tmp_path / "log.csv", ("key", "path", "tenant"), asked))
    clicks = write_csv(tmp_path / "clicks.csv", ("query", "item", "count"), clicked)
    galleries.import_query_set(context, "pics", "logged", log, unlabelled=True)
    galleries.import_query_set(context, "pics", "clicked", log, clicks=clicks)


def certify_pair(context: Context, old: str, new: str) -> str:
    """Certify on the only query set; returns the verdict."""
    request = certify.CertifyRequest(old, new, "pics", minimum_queries=20)
    return certify.certify(context, request).verdict


def certify_by_hand(context: Context, new: str, gallery: str = "pics", queryset: str = "asked") -> None:
    """A certificate of `new` against `old` as if it had been measured on too little: for models that harm."""
    with context.engine.begin() as connection:
        found = gallery_queries.gallery_by_name(connection, gallery)
        assert found is not None
        asked = gallery_queries.query_set_by_name(connection, found.id, queryset)
        ids = [getattr(model_queries.model_by_name(connection, name), "id", 0) for name in (new, "old")]
        model_queries.insert_certificate(
            connection, query_model_id=ids[0], gallery_model_id=ids[1], adapter_id=None,
            query_set_id=getattr(asked, "id", 0), verdict="certified", reason="by hand", measured={},
        )  # fmt: skip


def start(context: Context, to: str = "kin", **more: object) -> RolloutRow:
    """Start a rollout in entropy order."""
    return starting.start(context, starting.StartRequest("pics", to, prototypes="classes", **more))  # type: ignore[arg-type]
