"""Pre-training of an R(2+1)D backbone by overlap rates: the steps, their checkpoints, and the encoder that is left of it.

AdamW with the warm-up and half cosine of all training here, gradients clipped; the release has SGD and warms up for half of all
epochs. What a step draws depends on the seed and its number alone, so a training goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models.artifact import Manifest, save_artifact
from models.encoders.images import to_float
from models.encoders.r2plus1d import LEAST, ClipEncoder, as_input
from models.encoders.videos import VideoPreprocessing, picture_of
from models.errors import ArtifactError, ItemError, UsageError
from models.pretraining.cstp_loss import MOMENTUM, Weights, contrastive, follow, momentum_copy, total
from models.pretraining.cstp_network import CstpNetwork
from models.pretraining.cstp_sampler import LEAST_SIDE, MOST_ELONGATED, SOUND, Rules
from models.pretraining.cstp_views import Looks, draw_pairs
from models.training import fixed_threads
from models.training_checkpoint import Checkpoints, Keeper
from models.training_loop import learning_rate_at

if TYPE_CHECKING:
    from models.datasets import Item

U8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
_MARGIN = 8 / 7
"""Shorter edge of what is held over the network's edge: crops of it are not all enlarged."""


@dataclass(frozen=True)
class PretrainingOptions:
    """How a backbone is pre-trained.

    Attributes:
        width: of the backbone, which has 8 · width dimensions; 64 as released, 8 for CPUs.
        preprocessing: frames and edge of a clip, and its colours.
        rules: of the sampler; weights: of the loss; looks: what is changed after cropping.
        epochs: passes over the videos; need not be whole.
        batch_size: pairs a step.
        learning_rate: of AdamW at its peak.
        momentum: of the copy that the contrast looks at.
        clip_norm: longest gradient.
    """

    width: int = 8
    preprocessing: VideoPreprocessing = field(default_factory=lambda: VideoPreprocessing(size=56, mode="RGB"))
    rules: Rules = SOUND
    weights: Weights = field(default_factory=Weights)
    looks: Looks = field(default_factory=Looks)
    epochs: float = 30.0
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    momentum: float = MOMENTUM
    clip_norm: float = 18.0

    @property
    def digest(self) -> str:
        """sha256, hex, of all of it: the manifest names it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_videos(items: Sequence[Item], preprocessing: VideoPreprocessing) -> list[U8]:
    """Decoded clips in the preprocessing's colours, (T, H, W, 1 or 3) uint8, their shorter edge at most 8/7 of its size.

    Those that cannot be read, are narrower than 3 : 1 or too small to crop are left out.
    Raises UsageError when fewer than two are left, or an item is no video.
    """
    from models.datasets import read_item

    videos = []
    for item in items:
        try:
            found = read_item(item.uri)
        except ItemError:
            continue
        if not isinstance(found, np.ndarray):
            raise UsageError(f"{item.key} is no video: this is trained on clips")
        held = np.stack([_held(frame, preprocessing) for frame in found])
        short, long = sorted(held.shape[1:3])
        if short >= LEAST_SIDE and long <= MOST_ELONGATED * short:
            videos.append(held)
    if len(videos) < 2:
        raise UsageError(f"pre-training needs two videos or more; {len(videos)} of {len(items)} can be used")
    return videos


def _held(frame: U8, preprocessing: VideoPreprocessing) -> U8:
    picture = picture_of(frame).convert(preprocessing.mode)
    scale = preprocessing.size * _MARGIN / min(picture.size)
    if scale < 1:
        edges = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(edges, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class CstpTraining:
    """One pre-training, step by step. torch is seeded by the caller.

    Attributes:
        network: in training; target: its momentum copy.
        steps, done: in all, and done.

    Raises UsageError for clips too small for the network, and for a batch of one pair.
    """

    def __init__(self, videos: Sequence[U8], options: PretrainingOptions, seed: int) -> None:
        sizes = options.preprocessing.frames, options.preprocessing.size
        if min(sizes) < LEAST or options.batch_size < 2 or options.width < 1:
            raise UsageError(
                f"clips of {sizes[0]} frames of {sizes[1]} pixels in batches of {options.batch_size}: "
                f"frames and pixels must be {LEAST} or more, pairs two or more"
            )
        self._videos, self._options, self._seed = videos, options, seed
        self.network = CstpNetwork(options.width).train()
        self.target = momentum_copy(self.network)
        self.steps = max(1, math.ceil(options.epochs * len(videos) / options.batch_size))
        self.done = 0
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def step(self) -> float:
        """Learns from one batch of pairs; the loss."""
        options = self._options
        rng = np.random.default_rng([self._seed, self.done])
        pairs = draw_pairs(
            [self._videos[row] for row in self._rows()],
            rng,
            length=options.preprocessing.frames,
            size=options.preprocessing.size,
            rules=options.rules,
            looks=options.looks,
        )
        first, second = (as_input(each).contiguous() for each in pairs.clips)
        predicted, said = self.network(first, second)
        with torch.no_grad():
            targets = self.target.embed(first), self.target.embed(second)  # type: ignore[operator]
        loss = total(contrastive(predicted, targets), said, pairs.labels, options.weights)
        for group in self._optimiser.param_groups:
            group["lr"] = options.learning_rate * learning_rate_at(self.done / self.steps)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm)
        self._optimiser.step()
        follow(self.target, self.network, options.momentum)
        self.done += 1
        return float(loss.detach())

    def _rows(self) -> list[int]:
        """Of this step: every video once before any comes twice."""
        n, size = len(self._videos), self._options.batch_size
        places = range(self.done * size, (self.done + 1) * size)
        passes = {place // n for place in places}
        orders = {at: np.random.default_rng([self._seed, at, 1]).permutation(n) for at in passes}
        return [int(orders[place // n][place % n]) for place in places]

    def finish(self) -> ClipEncoder:
        """The encoder: the backbone, whose batch norms learn their statistics once more, from whole clips as embedded later."""
        prepared = [self._options.preprocessing(video) for video in self._videos[:1024]]
        encoder = ClipEncoder(dim=self.network.backbone.dim, width=self._options.width)
        encoder.backbone.load_state_dict(self.network.backbone.state_dict())
        for layer in encoder.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.reset_running_stats()
                layer.momentum = None  # a plain average over the batches
        with torch.no_grad():
            for at in range(0, len(prepared), 64):
                encoder.train()(to_float(torch.from_numpy(np.stack(prepared[at : at + 64]))))
        return encoder.eval()

    def state(self) -> dict[str, Tensor]:
        """All that the steps to come depend on, by name."""
        found = {"steps.done": torch.tensor(self.done)}
        found |= {f"network.{name}": each for name, each in self.network.state_dict().items()}
        found |= {f"target.{name}": each for name, each in self.target.state_dict().items()}
        for number, slots in self._optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{name}": each for name, each in slots.items()}
        return {name: each.detach().clone().contiguous() for name, each in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises ArtifactError when the tensors are not of such a training."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): each for n, each in tensors.items() if n.startswith(prefix)}

        try:
            self.network.load_state_dict(below("network."))
            self.target.load_state_dict(below("target."))
            slots: dict[int, dict[str, Tensor]] = {}
            for name, each in below("optimiser.").items():
                number, _, slot = name.partition(".")
                slots.setdefault(int(number), {})[slot] = each
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict({"state": slots, "param_groups": groups})
            self.done = int(tensors["steps.done"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint does not fit this training: {error}. Train again without --resume"
            ) from error


def pretrain(
    videos: Sequence[U8],
    folder: Path,
    *,
    name: str,
    options: PretrainingOptions | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Manifest:
    """Pre-trains on videos as `read_videos` gives them and writes the encoder's artifact to `folder`.

    The same seed and threads give the same weights on the same machine. Raises UsageError, ArtifactError.
    """
    options = options or PretrainingOptions()
    with fixed_threads(threads), torch.random.fork_rng():
        torch.manual_seed(seed)
        training = CstpTraining(videos, options, seed)
        keeper = _keeper(checkpoints, videos, options, seed, threads)
        started = time.monotonic()
        if keeper is not None and (found := keeper.found()) is not None:
            training.restore(found[0])
            started -= found[1]
        while training.done < training.steps:
            loss = training.step()
            if not math.isfinite(loss):
                raise UsageError(
                    f"the loss of step {training.done} is {loss}: pre-train with a smaller --learning-rate"
                )
            last = training.done == training.steps
            if keeper is not None and (last or keeper.due(training.done)):
                keeper.write(training.state(), training.done, time.monotonic() - started)
            if progress is not None:
                progress(training.done, training.steps)
        encoder = training.finish()
    said = {
        "method": "cstp",
        "configuration": options.digest,
        "rules": asdict(options.rules),
        "seed": seed,
        "threads": threads,
        "clips": len(videos),
        "epochs": options.epochs,
        "seconds": round(time.monotonic() - started, 2),
    }
    return save_encoder(encoder, folder, name=name, options=options, training=said)


def save_encoder(
    encoder: ClipEncoder, folder: Path, *, name: str, options: PretrainingOptions, training: Mapping[str, Any]
) -> Manifest:
    """Writes a backbone's artifact: an r2plus1d encoder of 8 · width dimensions."""
    return save_artifact(
        folder,
        encoder.state_dict(),
        kind="encoder",
        name=name,
        architecture="r2plus1d",
        options={"width": options.width},
        modality="video",
        preprocessing=asdict(options.preprocessing),
        dim=encoder.backbone.dim,
        training=training,
    )


def _keeper(
    checkpoints: Checkpoints | None,
    videos: Sequence[U8],
    options: PretrainingOptions,
    seed: int,
    threads: int,
) -> Keeper | None:
    if checkpoints is None:
        return None
    digest = hashlib.sha256()
    for video in videos:
        digest.update(repr(video.shape).encode() + video.tobytes())
    identity = {
        **asdict(options),
        "clips": digest.hexdigest(),
        "seed": seed,
        "threads": threads,
        "torch": torch.__version__,
    }
    return Keeper(checkpoints, identity)
