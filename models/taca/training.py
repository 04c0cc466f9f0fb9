"""Training of an adapted encoder: the backbone stays as it is, adapters and map learn, the artifact emits the old space."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.artifact import Manifest, save_artifact
from models.augmentation import Augmentation
from models.encoders import load_encoder
from models.encoders.images import TorchImageEncoder, to_float
from models.encoders.vit import ViT
from models.errors import UsageError
from models.options import above_zero, at_least
from models.taca.losses import taca_loss
from models.taca.network import MAP_ONLY, AdaptedViT, trained_parameters
from models.training import Pictures, fixed_threads, learning_rate_at, resized

ARCHITECTURE = "vit_adapted"
_START_PICTURES = 4096
_CHUNK = 512


@dataclass(frozen=True)
class AdaptOptions:
    """How an encoder is adapted.

    Attributes:
        placement: "serial", "parallel" or "symmetric" (bottleneck.py), or "none": the map alone.
        rank: of each adapter; 0 with "none".
        map_hidden: hidden units of the map's MLP; 0: a linear map.
        contrast: lambda, the weight of the contrast with old texts; 0: distillation alone.
        temperature: of that contrast.
        epochs: passes over the pictures; need not be whole.
        batch_size: pictures a step.
        learning_rate: of AdamW at its peak; warm-up over the first 10 % of the steps, then a half cosine to zero.
        weight_decay: of AdamW.
        augmentation: of every picture in every step; both models see the same view.
    """

    placement: str = "parallel"
    rank: int = 16
    map_hidden: int = 0
    contrast: float = 1.0
    temperature: float = 0.07
    epochs: float = 5.0
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Raises UsageError for settings that nothing can be trained with; placement and sizes are the network's matter."""
        at_least(0, contrast=self.contrast, weight_decay=self.weight_decay)
        at_least(2, batch_size=self.batch_size)
        above_zero(temperature=self.temperature, epochs=self.epochs, learning_rate=self.learning_rate)


def adapt_encoder(
    pictures: Pictures,
    new: Path,
    old: Path,
    folder: Path,
    *,
    name: str,
    texts: npt.NDArray[np.float32] | None = None,
    options: AdaptOptions | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Trains adapters and map of the encoder in `new` and writes an encoder that emits the space of `old`.

    Args:
        pictures: preprocessed as the new model's manifest says.
        new, old: artifacts of image encoders; the new one's architecture is "vit".
        texts: (C, d_o) float32, L2-normalised: the old text feature of each of `pictures.classes`. Needed where
            `options.contrast` is above 0.
        seed, threads: the same pair gives the same weights on the same machine.

    Raises UsageError: another architecture, pictures or texts of the wrong shape, an unknown placement. ArtifactError as
    `load_encoder`.
    """
    options = options or AdaptOptions()
    started = time.monotonic()
    target = _image_encoder(old)
    table = _text_table(texts, pictures, target.dim, options.contrast)
    with fixed_threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = _image_encoder(new)
        network = adapted_network(source, target.dim, options)
        _check_pixels(pictures.pixels, source)
        _start(network, source, target, pictures.pixels, seed)
        loss = _descend(network, target, pictures, table, options, seed, progress)
    return _save(folder, name, network, source, target, options, {
        "pictures": len(pictures.labels),
        "last_loss": round(loss, 5),
        "seed": seed,
        "threads": threads,
        "seconds": round(time.monotonic() - started, 2),
    })  # fmt: skip


def adapted_network(source: TorchImageEncoder, dim: int, options: AdaptOptions) -> AdaptedViT:
    """Fresh adapters and map around an encoder's network. Raises UsageError where it is no vision transformer."""
    if not isinstance(source.network, ViT):
        raise UsageError(
            f"{source.manifest.name} is a {source.manifest.architecture}: adapters go into the layers of a vit. "
            "Name such a model, or adapt its embeddings instead (model adapt)."
        )
    return AdaptedViT(
        source.network, dim, placement=options.placement, rank=options.rank, map_hidden=options.map_hidden
    )


def _image_encoder(folder: Path) -> TorchImageEncoder:
    encoder = load_encoder(folder)
    if not isinstance(encoder, TorchImageEncoder) or encoder.modality != "image":
        raise UsageError(f"{folder} holds no trained image encoder but a {encoder.manifest.architecture}.")
    return encoder


def _text_table(
    texts: npt.NDArray[np.float32] | None, pictures: Pictures, dim: int, contrast: float
) -> Tensor | None:
    """(C, d_o) as a tensor, or None where no text is looked at."""
    if contrast == 0:
        return None
    if texts is None:
        raise UsageError(
            "the contrast needs the old text features of the pictures' classes: give texts, or contrast 0."
        )
    if texts.shape != (len(pictures.classes), dim):
        raise UsageError(
            f"texts {texts.shape} do not fit: {len(pictures.classes)} classes in the old space of {dim} dims are needed."
        )
    return torch.from_numpy(np.ascontiguousarray(texts, np.float32))


def _check_pixels(pixels: npt.NDArray[np.uint8], source: TorchImageEncoder) -> None:
    expected = (source.preprocessing.channels, source.preprocessing.size, source.preprocessing.size)
    if pixels.shape[1:] != expected:
        raise UsageError(
            f"pictures {pixels.shape[1:]} do not fit {source.manifest.name}, which takes {expected}."
        )


def _start(
    network: AdaptedViT,
    source: TorchImageEncoder,
    target: TorchImageEncoder,
    pixels: npt.NDArray[np.uint8],
    seed: int,
) -> None:
    """The map begins where it can in closed form: the descent has the rest to learn."""
    rows = np.random.default_rng(seed).permutation(len(pixels))[:_START_PICTURES]
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for at in range(0, len(rows), _CHUNK):
            stack = to_float(torch.from_numpy(pixels[rows[at : at + _CHUNK]]))
            found.append((network.native(stack), target.embed(resized(stack, target.preprocessing))))
    ours, theirs = (torch.cat(each) for each in zip(*found, strict=True))
    network.map.start_from(ours, theirs)


def _descend(
    network: AdaptedViT,
    target: TorchImageEncoder,
    pictures: Pictures,
    table: Tensor | None,
    options: AdaptOptions,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> float:
    """All steps; the mean loss of the last tenth of them."""
    number = {label: place for place, label in enumerate(pictures.classes)}
    labels = torch.tensor([number[label] for label in pictures.labels])
    pixels = torch.from_numpy(pictures.pixels)
    generator = torch.Generator().manual_seed(seed)
    size = min(options.batch_size, len(pixels))
    steps = max(1, math.ceil(options.epochs * len(pixels) / size))
    optimiser = torch.optim.AdamW(
        network.trained(), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_at(step / steps))
    pool, losses = torch.empty(0, dtype=torch.int64), []
    for step in range(1, steps + 1):
        if len(pool) < size:  # every picture once before any comes twice
            pool = torch.cat([pool, torch.randperm(len(pixels), generator=generator)])
        rows, pool = pool[:size], pool[size:]
        view = options.augmentation(to_float(pixels[rows]), generator)
        with torch.no_grad():
            wanted = target.embed(resized(view, target.preprocessing))
        loss = taca_loss(
            functional.normalize(network(view), dim=1),
            wanted,
            None if table is None else table[labels[rows]],
            contrast=options.contrast,
            temperature=options.temperature,
            same=labels[rows],
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step, steps)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _save(
    folder: Path,
    name: str,
    network: AdaptedViT,
    source: TorchImageEncoder,
    target: TorchImageEncoder,
    options: AdaptOptions,
    record: dict[str, Any],
) -> Manifest:
    shape = {"placement": options.placement, "rank": options.rank, "map_hidden": options.map_hidden}
    manifest = source.manifest
    settings = asdict(options)
    return save_artifact(
        folder,
        network.state_dict(),
        kind="encoder",
        name=name,
        architecture=ARCHITECTURE,
        options={
            "network": dict(manifest.options),
            "source_dim": manifest.dim,
            **shape,
            "source_fingerprint": manifest.fingerprint,
            "space_fingerprint": target.manifest.fingerprint,
        },
        modality="image",
        preprocessing=asdict(source.preprocessing),
        dim=target.dim,
        training={
            "method": "taca-style",
            **{key: value for key, value in settings.items() if key not in shape},
            "trained_parameters": sum(each.numel() for each in network.trained()),
            **record,
        },
    )


__all__ = [
    "ARCHITECTURE",
    "MAP_ONLY",
    "AdaptOptions",
    "adapt_encoder",
    "adapted_network",
    "trained_parameters",
]
