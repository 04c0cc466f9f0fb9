"""What the heads know: how often each is right on pairs that it was not trained on. Needs no labels of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoders.r2plus1d import as_input
from models.pretraining.cstp_network import CstpNetwork
from models.pretraining.cstp_sampler import RATES, SOUND, STEPS, TURNS, Rules, Sample
from models.pretraining.cstp_views import draw_pairs

U8 = npt.NDArray[np.uint8]
HEADS = ("temporal", "spatial", "playback", "rotation")


@dataclass(frozen=True)
class Hits:
    """Of one head: right answers among so many, and what a constant or blind guess is right in, on average."""

    right: int
    asked: int
    chance_ratio: float


def right_answers(
    network: CstpNetwork,
    videos: Sequence[U8],
    *,
    length: int,
    size: int,
    rounds: int = 1,
    seed: int = 0,
    rules: Rules = SOUND,
) -> dict[str, Hits]:
    """Head → hits, on `rounds` pairs of each video, sampled by `rules` and not changed in look; the network in evaluation.

    The temporal head is asked only about pairs whose video has room for all five rates at their step: elsewhere some labels are
    likelier, and a head that knew the step alone would be right more often than one in five.
    """
    network.eval()
    rng = np.random.default_rng(seed)
    right = dict.fromkeys(HEADS, 0)
    asked = dict.fromkeys(HEADS, 0)
    steps = 1
    for _ in range(rounds):
        for at in range(0, len(videos), 64):
            batch = videos[at : at + 64]
            pairs = draw_pairs(batch, rng, length=length, size=size, rules=rules)
            with torch.no_grad():
                _, said = network(*(as_input(each).contiguous() for each in pairs.clips))
            roomy = [_has_room(one, len(v)) for one, v in zip(pairs.drawn, batch, strict=True)]
            keep = torch.tensor(roomy)
            labels = pairs.labels
            for head, answers in {
                "temporal": [(said.temporal[keep], labels.temporal[keep])],
                "spatial": [(said.spatial, labels.spatial)],
                "playback": [(each, labels.playback) for each in said.playback],
                "rotation": list(zip(said.rotation, labels.rotation, strict=True)),
            }.items():
                right[head] += sum(_right(*each) for each in answers)
                asked[head] += sum(len(each[1]) for each in answers)
            steps = max(steps, *(one.playback + 1 for one in pairs.drawn))
    chance = {"temporal": 1 / len(RATES), "spatial": 1 / len(RATES), "rotation": 1 / len(TURNS)}
    chance["playback"] = 1 / min(steps, len(STEPS))
    network.train()
    return {head: Hits(right[head], asked[head], chance[head]) for head in HEADS}


def _right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())


def _has_room(one: Sample, frames: int) -> bool:
    span = int(one.frames[0][-1] - one.frames[0][0])
    return frames - 1 - span >= int((1 - min(RATES)) * span)
