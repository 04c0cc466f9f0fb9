"""Pre-training: pairs as the network sees them, steps that can be resumed, and the backbone that is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.artifact import load_manifest
from models.datasets import list_items
from models.encoders import load_encoder
from models.encoders.videos import VideoPreprocessing
from models.errors import UsageError
from models.pretraining.cstp_probe import right_answers
from models.pretraining.cstp_sampler import PUBLISHED, SOUND, cut, sample
from models.pretraining.cstp_training import CstpTraining, PretrainingOptions, pretrain, read_videos
from models.pretraining.cstp_views import Looks, draw_pairs
from models.training_checkpoint import Checkpoints

SEEN = VideoPreprocessing(frames=8, size=16, mode="L")
OPTIONS = PretrainingOptions(width=2, preprocessing=SEEN, epochs=1.5, batch_size=4)
MIRRORED = Looks(flip=1.0, strong=0.0)


@pytest.fixture(scope="module")
def videos():
    return read_videos(list_items("moving-glyphs", "train").items[:8], SEEN)


def test_videos_are_held_in_the_colours_and_about_the_size_that_are_looked_at(videos):
    assert {v.shape for v in videos} == {(32, 18, 18, 1)}
    assert (
        read_videos(list_items("moving-glyphs", "train").items[:2], replace(SEEN, mode="RGB"))[0].shape[-1]
        == 3
    )
    with pytest.raises(UsageError, match="two videos"):
        read_videos(list_items("moving-glyphs", "train").items[:1], SEEN)
    with pytest.raises(UsageError, match="no video"):
        read_videos(list_items("glyphs", "train").items[:3], SEEN)


@pytest.mark.parametrize("rules", [SOUND, PUBLISHED])
def test_a_clip_is_mirrored_before_it_is_turned_unless_the_rules_turn_first(videos, rules):
    seed, drawn = next(
        (seed, d) for seed in range(99)
        if (d := sample(32, 18, 18, np.random.default_rng(seed), length=8, rules=rules)).turns[0] == 1
    )  # fmt: skip
    pairs = draw_pairs(
        videos[:1], np.random.default_rng(seed), length=8, size=16, rules=rules, looks=MIRRORED
    )
    straight = draw_pairs(videos[:1], np.random.default_rng(seed), length=8, size=16, rules=rules)
    axis = 3 if rules.turned_first else 2  # upside down after a quarter turn is left to right before it
    assert torch.allclose(pairs.clips[0][0], straight.clips[0][0].flip(axis), atol=1e-6)
    assert pairs.labels.rotation[0].tolist() == [1]
    assert cut(videos[0], drawn, 0, rules=rules).shape[0] == 8


def test_looks_change_a_clip_in_itself_alone_and_keep_the_labels(videos):
    strong = Looks(flip=0.0, strong=1.0)
    plain = draw_pairs(videos, np.random.default_rng(3), length=8, size=16)
    changed = draw_pairs(videos, np.random.default_rng(3), length=8, size=16, looks=strong)
    assert changed.clips[0].shape == (8, 8, 1, 16, 16)
    assert not torch.allclose(changed.clips[0][0], plain.clips[0][0])
    assert float(changed.clips[0].min()) >= 0
    assert float(changed.clips[0].max()) <= 1
    still = [
        np.repeat(v[:1], 32, axis=0) for v in videos
    ]  # nothing moves: no frame may differ from the first
    clips = draw_pairs(still, np.random.default_rng(3), length=8, size=16, looks=strong).clips[1]
    assert torch.allclose(clips, clips[:, :1].expand_as(clips), atol=1e-6)


def test_pretraining_goes_on_where_it_was_killed_and_ends_in_the_same_weights(videos, tmp_path):
    whole = pretrain(videos, tmp_path / "whole", name="m", options=OPTIONS, seed=3)
    kept = Checkpoints(tmp_path / "kept", every_steps=2)

    def stop(done, steps):
        assert steps == 3
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pretrain(videos, tmp_path / "x", name="m", options=OPTIONS, seed=3, checkpoints=kept, progress=stop)
    with pytest.raises(UsageError, match="--resume"):
        pretrain(videos, tmp_path / "x", name="m", options=OPTIONS, seed=3, checkpoints=kept)
    going_on = replace(kept, resume=True)
    with pytest.raises(UsageError, match="another training"):
        pretrain(videos, tmp_path / "x", name="m", options=OPTIONS, seed=4, checkpoints=going_on)
    resumed = pretrain(videos, tmp_path / "on", name="m", options=OPTIONS, seed=3, checkpoints=going_on)
    assert resumed.fingerprint == whole.fingerprint
    other = pretrain(videos, tmp_path / "other", name="m", options=OPTIONS, seed=4)
    assert other.fingerprint != whole.fingerprint


def test_what_is_left_is_an_encoder_without_heads_that_names_its_configuration(videos, tmp_path):
    pretrain(videos, tmp_path / "m", name="m", options=OPTIONS)
    encoder = load_encoder(tmp_path / "m")
    manifest = load_manifest(tmp_path / "m")
    assert (encoder.dim, encoder.modality, manifest.architecture) == (16, "video", "r2plus1d")
    assert all(name.startswith("backbone.") for name in encoder.network.state_dict())
    assert manifest.training["configuration"] == OPTIONS.digest
    assert replace(OPTIONS, rules=PUBLISHED).digest != OPTIONS.digest
    assert np.isfinite(encoder.encode([encoder.preprocess(videos[0])])).all()


def test_the_network_learns_and_its_copy_follows(videos):
    torch.manual_seed(0)
    training = CstpTraining(videos, replace(OPTIONS, epochs=30, learning_rate=3e-3), 0)
    target = {n: p.clone() for n, p in training.target.named_parameters()}
    losses = [training.step() for _ in range(training.steps)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15]) - 0.5
    moved = dict(training.target.named_parameters())
    assert any(not torch.equal(moved[n], p) for n, p in target.items())


def test_a_batch_sees_every_video_before_any_twice(videos):
    training = CstpTraining(videos, replace(OPTIONS, batch_size=3), 0)
    rows = []
    for training.done in range(16):
        rows += training._rows()
    assert all(sorted(rows[at : at + 8]) == list(range(8)) for at in range(0, 48, 8))


def test_the_temporal_head_is_asked_only_where_all_rates_have_room(videos):
    training = CstpTraining(videos, OPTIONS, 0)
    hits = right_answers(training.network, videos, length=8, size=16, rounds=4)
    assert hits["spatial"].asked == 32
    assert hits["rotation"].asked == hits["playback"].asked == 64
    assert 0 < hits["temporal"].asked < 32  # at step 4 a clip spans 29 of 32 frames
    assert (hits["temporal"].chance_ratio, hits["playback"].chance_ratio) == (0.2, 1 / 3)


def test_options_that_cannot_be_are_refused(videos):
    for wrong in (
        replace(OPTIONS, preprocessing=replace(SEEN, frames=4)),
        replace(OPTIONS, batch_size=1),
        replace(OPTIONS, width=0),
    ):
        with pytest.raises(UsageError, match="or more"):
            CstpTraining(videos, wrong, 0)
