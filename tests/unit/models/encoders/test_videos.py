"""Encoders of videos: which frames they see, grey and colour, artifacts, training in the loop of pictures."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from models.artifact import load_manifest, save_artifact
from models.augmentation import Augmentation
from models.datasets import Item, list_items
from models.encoders import architecture_module, check_network, load_encoder
from models.encoders.videos import VideoPreprocessing
from models.errors import ItemError, UsageError
from models.training import TrainingOptions, read_pictures, resized, train_encoder

SEEN = VideoPreprocessing(frames=8, size=16, mode="L")
NETWORKS = {"r2plus1d": {"width": 2}, "frame_vit": {"patch": 8, "width": 16, "depth": 1, "heads": 2}}


def saved(folder, architecture, seen=SEEN, dim=16, seed=0, **network):
    options = network or NETWORKS[architecture]
    torch.manual_seed(seed)
    net = architecture_module(architecture).build(options, dim, seen)
    save_artifact(
        folder, net.state_dict(), kind="encoder", name=folder.name, architecture=architecture, options=options,
        modality="video", preprocessing=asdict(seen), dim=dim,
    )  # fmt: skip
    return folder


def numbered(frames=32, edge=16):
    return np.broadcast_to(
        np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, edge, edge, 1)
    ).copy()


def test_a_clip_becomes_the_middles_of_its_equal_parts():
    assert SEEN(numbered())[:, 0, 0, 0].tolist() == [2, 6, 10, 14, 18, 22, 26, 30]
    assert SEEN(numbered()).shape == (8, 1, 16, 16)
    assert SEEN(numbered(2))[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4
    wide = np.full((3, 8, 16, 3), 200, np.uint8)
    assert (
        replace(SEEN, mode="RGB", size=16)(wide)[0, :, :, 8].tolist() == [[0] * 4 + [200] * 8 + [0] * 4] * 3
    )


@pytest.mark.parametrize(
    "item", ["a text", list_items("glyphs", "queries").items[0], np.zeros((4, 4), np.uint8)]
)
def test_what_is_no_clip_is_an_item_error(tmp_path, item):
    encoder = load_encoder(saved(tmp_path / "m", "r2plus1d"))
    if isinstance(item, Item):
        from models.datasets import read_item

        item = read_item(item.uri)
    with pytest.raises(ItemError) as error:
        encoder.preprocess(item)
    assert error.value.reason == "modality"


@pytest.mark.parametrize("architecture", NETWORKS)
def test_vectors_are_unit_rows_and_one_at_a_time_as_together(tmp_path, architecture):
    encoder = load_encoder(saved(tmp_path / "m", architecture))
    rng = np.random.default_rng(0)
    prepared = [encoder.preprocess(rng.integers(0, 255, (12, 20, 20, 1), np.uint8)) for _ in range(5)]
    vectors = encoder.encode(prepared)
    assert encoder.modality == "video"
    assert vectors.shape == (5, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[3:4], encoder.encode(prepared[3:4]), atol=1e-5)
    forward = encoder.forward_on(torch.device("cpu"), torch.float32)
    assert np.allclose(vectors, forward(*encoder.collate(prepared)).numpy(), atol=1e-5)


def test_the_convolution_over_time_sees_order_and_pooled_frames_do_not(tmp_path):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 255, (8, 16, 16, 1), np.uint8)
    for architecture, same in (("frame_vit", True), ("r2plus1d", False)):
        encoder = load_encoder(saved(tmp_path / architecture, architecture))
        there, back = (encoder.encode([encoder.preprocess(each)]) for each in (clip, clip[::-1]))
        assert np.allclose(there, back, atol=1e-5) == same, architecture


def test_all_frames_of_a_clip_are_augmented_alike():
    clips = torch.rand(3, 1, 1, 12, 12).expand(3, 5, 1, 12, 12)
    changed = Augmentation(noise=0)(clips, torch.Generator().manual_seed(0))
    assert changed.shape == clips.shape
    assert torch.equal(changed[:, 0], changed[:, 4])
    assert not torch.allclose(changed, clips)


def test_clips_are_resized_to_another_models_frames_edge_and_colours():
    clips = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(2, 8, 1, 16, 16) / 8
    other = resized(clips, VideoPreprocessing(frames=4, size=8, mode="RGB"))
    assert other.shape == (2, 4, 3, 8, 8)
    assert torch.allclose(other[0, :, 0, 0, 0] * 8, torch.tensor([1.0, 3.0, 5.0, 7.0]))


def moving(classes=2, per_class=4):
    items = list_items("moving-glyphs", "train").items
    labels = list(dict.fromkeys(each.label for each in items))[:classes]
    return [each for label in labels for each in [i for i in items if i.label == label][:per_class]]


OPTIONS = TrainingOptions(
    architecture="r2plus1d", network={"width": 2}, dim=16, preprocessing=SEEN, epochs=2, batch_size=4
)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_model_of_videos_is_trained_to_be_compatible_with_one_of_other_frames(tmp_path, architecture):
    clips = read_pictures(moving(), SEEN)
    assert clips.pixels.shape == (8, 8, 1, 16, 16)
    old = saved(tmp_path / "old", architecture, replace(SEEN, frames=16, size=24), dim=8)
    options = replace(OPTIONS, architecture=architecture, network=NETWORKS[architecture])
    new = train_encoder(clips, tmp_path / "new", name="new", method="ract", old=old, options=options)
    manifest = load_manifest(new)
    assert (manifest.modality, manifest.preprocessing["frames"]) == ("video", 8)
    again = train_encoder(clips, tmp_path / "again", name="new", method="ract", old=old, options=options)
    assert load_manifest(again).fingerprint == manifest.fingerprint


def test_training_begins_with_another_models_weights_but_for_its_last_layer(tmp_path):
    clips = read_pictures(moving(), SEEN)
    first = saved(tmp_path / "first", "r2plus1d", seed=5)  # 16 dimensions: no last layer
    still = replace(OPTIONS, dim=12, epochs=0.5, learning_rate=0.0)
    begun = load_encoder(train_encoder(clips, tmp_path / "new", name="n", options=still, init=first, seed=1))
    weights, wanted = begun.network.state_dict(), load_encoder(first).network.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in wanted.items() if n.endswith("weight"))
    assert begun.manifest.training["init"] == load_manifest(first).fingerprint
    drawn = load_encoder(train_encoder(clips, tmp_path / "drawn", name="n", options=still, seed=1))
    assert not torch.equal(
        drawn.network.state_dict()["backbone.stem.0.0.weight"], wanted["backbone.stem.0.0.weight"]
    )


def test_weights_of_another_shape_or_architecture_are_refused(tmp_path):
    clips = read_pictures(moving(), SEEN)
    for other, said in (
        (saved(tmp_path / "wide", "r2plus1d", dim=16, width=4), "do not fit the network"),
        (saved(tmp_path / "vit", "frame_vit"), "same architecture"),
    ):
        with pytest.raises(UsageError, match=said):
            train_encoder(clips, tmp_path / "x", name="x", options=OPTIONS, init=other)


def test_pictures_and_clips_do_not_mix_in_training(tmp_path):
    with pytest.raises(UsageError, match="no video but image"):
        read_pictures([*moving(), list_items("glyphs", "train").items[0]], SEEN)
    with pytest.raises(UsageError, match="must be 8 or more"):
        check_network("r2plus1d", {"width": 2}, 16, replace(SEEN, frames=4))
    with pytest.raises(UsageError, match="cannot take depth; it has width"):
        check_network("r2plus1d", {"depth": 2}, 16, SEEN)
