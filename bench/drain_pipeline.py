"""Row 5: the share of a drain's time in which its encoder is busy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.scratch import register_network, row, scratch_context
from models.encoders import Encoder
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries, rollouts
from orchestrator.service import advance
from orchestrator.service.galleries import create_gallery

RATE_PER_S = 10_000


class PacedStub:
    """Takes n / 10,000 seconds for n items and computes nothing: whatever else takes time is ours."""

    dim = 64
    modality = "image"

    def __init__(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(4096, self.dim)).astype(np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def preprocess(self, item: Any) -> Any:
        return item

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        time.sleep(len(prepared) / RATE_PER_S)
        return self._vectors[: len(prepared)]


def run(repeats: int = 3, items: int = 102_400) -> list[dict[str, Any]]:
    """Median busy share of `repeats` drains: the stub at two batch sizes, and a small network on real pictures."""
    with scratch_context() as context:
        register_network(context, "bench", 0)
        texts = _text_gallery(context, items)
        create_gallery(context, "glyphs", "glyphs", "gallery")
        rows = []
        for batch, target in ((1024, 0.98), (4096, 0.995)):
            share = statistics.median(_busy(context, texts, batch, PacedStub()) for _ in range(repeats))
            rows.append(
                row(5, f"encoder busy / wall, {items:,} items, paced stub of {RATE_PER_S:,} items/s, B = {batch:,}", share,
                    "share", "the bare encode loop", share, f">= {target}", share >= target)
            )  # fmt: skip
        share = statistics.median(_busy(context, "glyphs", 1024, None) for _ in range(repeats))
        rows.append(
            row(5, "the same, a small network on 35,190 glyphs, B = 1,024", share, "share", "the bare encode loop", share,
                ">= 0.99", share >= 0.99)
        )  # fmt: skip
    return rows


def _text_gallery(context: Context, items: int) -> str:
    with transaction(context.engine) as connection:
        gallery = galleries.insert_gallery(connection, name="stub", modality="image", source="bench")
        assert gallery is not None
        galleries.copy_items(connection, gallery, ((n, str(n), f"text:item {n}", None) for n in range(items)))
    return "stub"


def _busy(context: Context, gallery: str, batch_size: int, stub: Encoder | None) -> float:
    from orchestrator.service.rollouts import cancel
    from workers.drain import drain

    rollout = advance.embed_gallery(context, gallery, "bench", batch_size)
    advance.advance(context, rollout.id)
    result = drain(context, rollout.id, owner="bench", encoder=stub)
    assert result.failure is None, result.failure
    assert result.items == rollout.n_items
    cancel(context, rollout.id)  # so that the next one can embed it again
    with transaction(context.engine) as connection:
        assert rollouts.serving_now(connection, rollout.gallery_id) is None
    return result.encoder_busy_s / result.wall_s
