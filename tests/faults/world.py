"""The world that is hurt: galleries of numbered texts with one item that no encoder takes, a model and its successor."""

from __future__ import annotations

import csv
from pathlib import Path

from models.encoders import factory
from orchestrator.context import Context
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service import advance, certify, embed, finish, galleries, models
from orchestrator.service import start as starting
from tests.faults.encoder import POISON

GALLERY, OLD, NEW = "texts", "old", "kin"
QUERIES = 24


def write_texts(path: Path, count: int, *, kind: str = "item", poison: bool = False) -> Path:
    """A manifest of `count` texts, each with its number as label; the last one poisoned where asked."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "text", "label"])
        for number in range(count):
            last = poison and number == count - 1
            rows.writerow([f"{kind}-{number}", f"{POISON if last else kind} {number}", number])
    return path


def build(context: Context, folder: Path, items: int = 48, *, names: tuple[str, ...] = (GALLERY,)) -> None:
    """Galleries embedded by `old`, each with a query set, and `kin` certified against it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, moved in ((OLD, 0.0), (NEW, 0.05)):
        factory.create(folder / name, name, "tests.faults.encoder:Numbered", {"moved": moved})
        models.import_model(context, folder / name, name, own_code=True)
    for name in names:
        add_gallery(context, folder, name, items)


def add_gallery(context: Context, folder: Path, name: str, items: int) -> None:
    """One gallery with queries, embedded and certified."""
    galleries.create_gallery(context, name, str(write_texts(folder / f"{name}.csv", items, poison=True)))
    queries = write_texts(folder / f"{name}-queries.csv", min(QUERIES, items - 1), kind="query")
    galleries.import_query_set(context, name, "asked", str(queries))
    row = embed.embed_gallery(context, name, OLD, batch_size=64)
    assert work(context, row.id).state == "finalized"
    verdict = certify.certify(context, certify.CertifyRequest(OLD, NEW, name, minimum_queries=10)).verdict
    assert verdict == "certified", verdict


def work(context: Context, rollout_id: int) -> RolloutRow:
    """Do in this process what a worker does, to the end."""
    from workers.drain import drain

    advance.advance(context, rollout_id)
    result = drain(context, rollout_id, owner="world")
    if result.failure is not None:
        raise result.failure
    return finish.complete(context, rollout_id)


def request(
    gallery: str = GALLERY, *, batch_size: int = 4, lease_s: float = 1.0, to: str = NEW
) -> starting.StartRequest:
    """A start of small batches in an order of its own."""
    return starting.StartRequest(
        gallery, to, order="random", prototypes="classes", batch_size=batch_size, lease_s=lease_s
    )


def begin(
    context: Context, gallery: str = GALLERY, *, batch_size: int = 4, lease_s: float = 1.0
) -> RolloutRow:
    """Start a rollout and plan it: batches can be claimed when this returns."""
    row = starting.start(context, request(gallery, batch_size=batch_size, lease_s=lease_s))
    return advance.advance(context, row.id)
