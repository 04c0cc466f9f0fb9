"""wordllama read from its wheel: prefixes are models, the wheel's files are pinned."""

from __future__ import annotations

import numpy as np
import pytest

from models.artifact import load_manifest
from models.encoders import load_encoder
from models.errors import ArtifactError, ItemError, UsageError

pytest.importorskip("wordllama", reason="needs: pip install 'hotrefresh[text]'")
from models.encoders import wordllama

TEXTS = ["a dog runs in the park", "a hound is running outside", "quarterly interest rates rose"]


@pytest.fixture
def encoder(tmp_path):
    wordllama.create(tmp_path / "w", "w", 64)
    return load_encoder(tmp_path / "w")


def test_vectors_are_finite_normalised_and_near_for_near_texts(encoder):
    vectors = encoder.encode([encoder.preprocess(text) for text in TEXTS])
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_a_prefix_is_the_longer_model_cut_and_another_space(tmp_path, encoder):
    wordllama.create(tmp_path / "long", "long", 256)
    longer = load_encoder(tmp_path / "long")
    cut = longer.encode(TEXTS)[:, :64]
    np.testing.assert_allclose(
        cut / np.linalg.norm(cut, axis=1, keepdims=True), encoder.encode(TEXTS), atol=1e-5
    )
    assert longer.manifest.fingerprint != encoder.manifest.fingerprint


@pytest.mark.parametrize("dims", [0, 257, -1])
def test_dimensions_that_it_does_not_have_are_refused(tmp_path, dims):
    with pytest.raises(UsageError, match="256 dimensions"):
        wordllama.create(tmp_path / "w", "w", dims)
    assert not (tmp_path / "w").exists()


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(wordllama, "_sha256", lambda path: "0" * 64)
    with pytest.raises(ArtifactError, match="not the file this model was made with"):
        load_encoder(tmp_path / "w")
    assert load_manifest(tmp_path / "w").dim == 64


@pytest.mark.parametrize("text", ["", "  \n", "x" * 100_001])
def test_texts_that_cannot_be_embedded_are_item_errors(encoder, text):
    with pytest.raises(ItemError):
        encoder.preprocess(text)
