"""An adapted encoder, trained in small: it nears the old space, its backbone stays as it was, it is an encoder like any."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.artifact import load_artifact, load_manifest, save_artifact
from models.augmentation import Augmentation
from models.downstream import fit_head, fit_text_tower
from models.encoders import load_encoder
from models.errors import ArtifactError, UsageError
from models.taca.network import trained_parameters
from models.taca.training import AdaptOptions, adapt_encoder
from models.training import Pictures, train_encoder
from tests.unit.models.test_training import OPTIONS, bars

NEW = dataclasses.replace(
    OPTIONS,
    architecture="vit",
    network={"patch": 4, "width": 24, "depth": 2, "heads": 2},
    dim=20,
    epochs=8,
    augmentation=Augmentation(),
)
ADAPT = AdaptOptions("parallel", rank=4, epochs=6, batch_size=32, learning_rate=5e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of an old convnet (16 dims) and a new vit (20 dims), pictures, and the old space's head and text tower."""
    folder = tmp_path_factory.mktemp("taca")
    pictures = bars()
    old = train_encoder(bars(range(4)), folder / "old", name="old", options=OPTIONS, seed=0)
    new = train_encoder(pictures, folder / "new", name="new", options=NEW, seed=1)
    features = load_encoder(old).encode(pictures.pixels)
    head = fit_head(features, pictures.labels, steps=150)
    tower = fit_text_tower(features, pictures.labels, steps=150)
    return folder, old, new, pictures, head, tower


@pytest.fixture(scope="module")
def adapted(world):
    folder, old, new, pictures, _, tower = world
    texts = tower.encode(pictures.classes)
    adapt_encoder(pictures, new, old, folder / "adapted", name="adapted", texts=texts, options=ADAPT, seed=3)
    return folder / "adapted"


def test_the_backbone_is_byte_for_byte_the_new_model_after_training(world, adapted):
    _, before = load_artifact(world[2])
    _, after = load_artifact(adapted)
    kept = {
        name.removeprefix("backbone."): each for name, each in after.items() if name.startswith("backbone.")
    }
    assert set(kept) == set(before) - {"prototypes"}
    assert [name for name, each in kept.items() if not torch.equal(each, before[name])] == []
    learned = [each for name, each in after.items() if name.startswith("adapters.") and ".up." in name]
    assert len(learned) == 4
    assert all(each.any() for each in learned)


def test_the_artifact_is_an_encoder_of_the_old_space_and_says_which(world, adapted):
    _, old, new, pictures, *_ = world
    encoder = load_encoder(adapted)
    manifest = encoder.manifest
    assert (manifest.kind, manifest.architecture, manifest.dim) == ("encoder", "vit_adapted", 16)
    assert manifest.options["space_fingerprint"] == load_manifest(old).fingerprint
    assert manifest.options["source_fingerprint"] == load_manifest(new).fingerprint
    assert manifest.fingerprint not in (load_manifest(old).fingerprint, load_manifest(new).fingerprint)
    count = trained_parameters(NEW.network, 20, 16, placement="parallel", rank=4)
    assert manifest.training["trained_parameters"] == count
    vectors = encoder.encode(pictures.pixels)
    assert vectors.shape == (len(pictures.labels), 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_it_nears_the_old_embeddings_and_the_frozen_modules_work_with_it_unchanged(world, adapted):
    _, old, _, _, head, tower = world
    digests = head.digest, tower.digest
    fresh = bars(seed=5)
    vectors = load_encoder(adapted).encode(fresh.pixels)
    cosines = (vectors * load_encoder(old).encode(fresh.pixels)).sum(1)
    assert cosines.mean() > 0.8
    assert head.evaluate(vectors, fresh.labels) > 0.8
    assert tower.evaluate(vectors, fresh.labels) > 0.8
    assert (head.digest, tower.digest) == digests


def test_the_same_seed_gives_the_same_weights_and_another_does_not(world, tmp_path):
    _, old, new, pictures, *_ = world
    options = dataclasses.replace(ADAPT, epochs=0.5, contrast=0.0)
    digests = [
        adapt_encoder(pictures, new, old, tmp_path / "a", name="a", options=options, seed=seed).digest
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_lambda_zero_needs_no_texts_and_does_not_read_them(world, tmp_path):
    _, old, new, pictures, _, tower = world
    options = dataclasses.replace(ADAPT, epochs=0.5, contrast=0.0)
    texts = tower.encode(pictures.classes)
    found = {
        adapt_encoder(pictures, new, old, tmp_path / "a", name="a", options=options, texts=each).digest
        for each in (None, texts, -texts)
    }
    assert len(found) == 1
    told = dataclasses.replace(options, contrast=1.0)
    assert (
        adapt_encoder(pictures, new, old, tmp_path / "a", name="a", options=told, texts=texts).digest
        not in found
    )


def test_what_does_not_fit_is_said(world, tmp_path):
    _, old, new, pictures, _, tower = world
    texts = tower.encode(pictures.classes)

    def refused(said, *, target=old, source=new, seen=pictures, texts=texts, **options):
        with pytest.raises(UsageError, match=said):
            adapt_encoder(
                seen, source, target, tmp_path / "x", name="x", texts=texts,
                options=dataclasses.replace(ADAPT, **options),
            )  # fmt: skip

    refused("sideways", placement="sideways")
    refused("rank 0", rank=0)
    refused("contrast must be at least 0", contrast=-1.0)
    refused("temperature must be above 0", temperature=0.0)
    refused("give texts, or contrast 0", texts=None)
    refused(r"texts \(8, 15\).*8 classes.*16 dims", texts=texts[:, :15])
    refused(r"texts \(7, 16\)", texts=texts[:7])
    refused("old is a convnet: adapters go into the layers of a vit", source=old)
    refused(r"pictures \(1, 8, 8\)", seen=Pictures(pictures.pixels[:, :, :8, :8].copy(), pictures.labels))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 5}, "size mismatch"),
        ({"placement": "sideways"}, "sideways"),
        ({"source_dim": 21}, "size mismatch"),
    ],
)
def test_an_artifact_whose_options_do_not_fit_its_weights_is_refused(adapted, tmp_path, change, said):
    manifest, tensors = load_artifact(adapted)
    save_artifact(
        tmp_path / "bad", tensors, kind="encoder", name="bad", architecture="vit_adapted",
        options={**manifest.options, **change}, modality="image", preprocessing=manifest.preprocessing, dim=manifest.dim,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=said):
        load_encoder(tmp_path / "bad")
