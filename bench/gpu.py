"""Rows 5, 7 and 15 on a GPU: the whole worker against the bare model, and the uncertainty of a gallery."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import gpu_uncertainty
from bench.result import Row, document, median, quartiles, seconds
from bench.scratch import register_network, scratch_context
from models.encoders.device import TensorEncoder, choose_device
from models.encoders.images import ImagePreprocessing
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches, galleries, rollouts
from orchestrator.service import advance, embed
from orchestrator.settings import Settings, load_settings
from workers.encode import PlacedEncoder, place_encoder

FOLDER = Path("bench-results")
SEED = 0
NO_GPU = (
    "no GPU: torch sees no CUDA device here. Needed: an NVIDIA GPU with its driver (the targets are for an H100), a CUDA "
    "build of torch, and for row 15 as many processor cores as decode the pictures as fast as the GPU embeds them."
)
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Size:
    """What is embedded: a vision transformer large enough that the GPU, not the decoding, is the limit."""

    items: int
    batch_size: int
    options: dict[str, Any]
    preprocessing: ImagePreprocessing
    dim: int


LARGE = Size(
    16_384,
    1024,
    {"patch": 16, "width": 1024, "depth": 24, "heads": 16},
    ImagePreprocessing(size=224, mode="RGB"),
    256,
)
SMALL = Size(256, 64, {}, ImagePreprocessing(), 64)


def run(
    settings: Settings | None = None,
    *,
    device: str | None = None,
    repeats: int = 5,
    say: Callable[[str], None] | None = None,
    folder: Path = FOLDER,
) -> dict[str, Any]:
    """Measure, write <folder>/gpu.json, and return the same document; without a GPU one without rows that says why.

    Args:
        settings: whose server and disk are used, in a database and a folder of their own; None: as configured.
        device: "cuda:N", or "cpu" to see in small sizes that it works: no figure of that is worth quoting.
        say: told what is measured next.
    """
    tell = say or (lambda text: None)
    if device is None and not torch.cuda.is_available():
        tell(NO_GPU)
        return {**document("gpu", [], reason=NO_GPU), "reason": NO_GPU}
    where = choose_device(device or "cuda")
    small = where.type == "cpu"
    torch.set_num_threads(1)
    tell("row 7: uncertainty of a gallery")
    measured = gpu_uncertainty.measure(where, repeats=repeats, small=small)
    tell("rows 15 and 5: the whole worker")
    measured += _worker(settings or load_settings(), where, SMALL if small else LARGE, repeats)
    if small:  # the targets are for a GPU
        measured = [replace(row, holds=None) for row in measured]
    result = document("gpu", measured, **describe(where), repeats=repeats, seed=SEED)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    (folder / "gpu.json").write_text(text, encoding="utf-8")
    return result


def describe(where: torch.device) -> dict[str, Any]:
    """The device, its driver and the libraries between."""
    if where.type == "cpu":
        return {"device": "cpu"}
    return {
        "device": torch.cuda.get_device_name(where),
        "device_memory_bytes": torch.cuda.get_device_properties(where).total_memory,
        "driver": DRIVER.read_text().splitlines()[0] if DRIVER.is_file() else None,
        "cuda": torch.version.cuda,
    }


# -- rows 15 and 5 ------------------------------------------------------------------------------------------------


def _worker(settings: Settings, where: torch.device, size: Size, repeats: int) -> list[Row]:
    """Items per second of whole drains, with real claims, pictures, extents and commits, against the bare model."""
    with scratch_context(settings) as context:
        if where.type == "cuda":  # two threads could not decode for a GPU
            threads = min(64, os.cpu_count() or 1)
            context.settings = context.settings.model_copy(update={"decode_threads": threads})
        model = register_network(
            context, "bench", "vit", size.options, SEED, size.dim, preprocessing=size.preprocessing
        )
        placed = place_encoder(context.encoder(model), str(where))
        gallery = _gallery(context, size.items)
        _warm(placed, size)
        rates, bare_rates, shares = [], [], []
        for _ in range(repeats):
            bare_rates.append(size.items / _bare_s(context.encoder(model), placed, size))
            wall_s, busy_s = _drain(context, gallery, placed, size)
            rates.append(size.items / wall_s)
            shares.append(busy_s / wall_s)
        decoders = context.settings.decode_threads
    what = (
        f"ViT of width {size.options.get('width', 96)}, {size.preprocessing.size} pixels, "
        f"{str(placed.precision).removeprefix('torch.')} on {where}, N = {size.items:,}, d = {size.dim}, "
        f"B = {size.batch_size:,}, {decoders} decoding threads, seed {SEED}"
    )
    against = [rate / bare for rate, bare in zip(rates, bare_rates, strict=True)]
    return [
        Row(
            15,
            f"whole worker, {what}: median of {repeats}, {quartiles(against, form='.4f')}",
            median(rates),
            "items/s",
            f"bare model(x) on resident batches, {median(bare_rates):,.0f} items/s",
            median(against),
            ">= 0.95",
            median(against) >= 0.95,
        ),
        Row(
            5,
            f"encoder busy / wall on the device, {what}: median of {repeats}, {quartiles(shares, form='.4f')}",
            median(shares),
            "share",
            "the drain's wall time",
            median(shares),
            ">= 0.99",
            median(shares) >= 0.99,
        ),
    ]


def _warm(placed: PlacedEncoder, size: Size) -> None:
    """Settle the precision, choose kernels and fill the allocators' caches, at every shape that comes."""
    for _ in range(3):
        placed.encode(placed.stage(_pixels(size, size.batch_size)))


def _pixels(size: Size, n: int) -> np.ndarray:
    shape = (n, size.preprocessing.channels, size.preprocessing.size, size.preprocessing.size)
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def _bare_s(encoder: TensorEncoder, placed: PlacedEncoder, size: Size) -> float:
    """Seconds in which the network alone embeds as many items, from one batch that lies on the device."""
    forward = encoder.forward_on(placed.device, placed.precision)
    together = min(placed.together or size.batch_size, size.batch_size)
    resident = torch.from_numpy(_pixels(size, together)).to(placed.device)

    def loop() -> None:
        with torch.inference_mode():
            for _ in range(-(-size.items // together)):
                forward(resident)
        gpu_uncertainty.synchronise(placed.device)

    with torch.inference_mode():
        forward(resident)
    gpu_uncertainty.synchronise(placed.device)
    return seconds(loop) * size.items / (-(-size.items // together) * together)


def _drain(context: Context, gallery: str, placed: PlacedEncoder, size: Size) -> tuple[float, float]:
    """(wall, busy) seconds of one drain in which every item was committed exactly once."""
    from orchestrator.service.rollouts import cancel
    from workers.drain import drain

    rollout = embed.embed_gallery(context, gallery, "bench", size.batch_size)
    advance.advance(context, rollout.id)
    before_s = placed.busy_s
    result = drain(context, rollout.id, owner="bench", encoder=placed)
    assert result.failure is None, result.failure
    assert result.items == rollout.n_items == size.items, "an item was lost, doubled or quarantined"
    with transaction(context.engine) as connection:
        committed = rollouts.rollout_by_id(connection, rollout.id)
        assert committed is not None
        assert committed.committed_items == size.items
        assert batches.attempts_histogram(connection, rollout.id) == {1: result.batches}
    cancel(context, rollout.id)  # so that the next one can embed the gallery again
    return result.wall_s, placed.busy_s - before_s


def _gallery(context: Context, n: int) -> str:
    """A gallery of n pictures: the glyphs, again and again."""
    from models.datasets import list_items

    uris = [item.uri for item in list_items("glyphs", "gallery").items]
    items = ((row, str(row), uris[row % len(uris)], None) for row in range(n))
    with transaction(context.engine) as connection:
        gallery = galleries.insert_gallery(connection, name="bench", modality="image", source="bench")
        assert gallery is not None
        galleries.copy_items(connection, gallery, items)
    return "bench"
