"""wordllama read from its wheel: prefixes are models, the wheel's files are pinned."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
from PIL import Image

from models.artifact import MANIFEST_FILE
from models.encoders import load_encoder
from models.errors import ArtifactError, ItemError, UsageError

pytest.importorskip("wordllama", reason="needs: pip install 'hotrefresh[text]'")
from models.encoders import wordllama

TEXTS = ["a dog runs in the park", "a hound is running outside", "quarterly interest rates rose"]


def rewrite(folder, **changed):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


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


@pytest.mark.parametrize("pin", ["weights_sha256", "tokenizer_sha256"])
def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, encoder, pin):
    changed = dict(encoder.manifest.options) | {pin: "0" * 64}
    rewrite(tmp_path / "w", options=changed)
    with pytest.raises(ArtifactError, match="not the file this model was made with"):
        load_encoder(tmp_path / "w")


@pytest.mark.parametrize("dim", [32, 999])
def test_a_manifest_whose_dims_contradict_each_other_is_refused(tmp_path, encoder, dim):
    rewrite(tmp_path / "w", dim=dim)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_encoder(tmp_path / "w")


def test_a_missing_wheel_names_the_command_that_brings_it(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("models.encoders.wheel.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hotrefresh\[text\]'"):
        wordllama.create(tmp_path / "other", "other", 64)
    with pytest.raises(ArtifactError, match=r"pip install 'hotrefresh\[text\]'"):
        load_encoder(tmp_path / "w")


def test_a_wheel_without_its_weights_is_a_clear_error(tmp_path, monkeypatch):
    hollow = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("models.encoders.wheel.find_spec", lambda name: hollow)
    with pytest.raises(UsageError, match=r"has no .*safetensors"):
        wordllama.create(tmp_path / "other", "other", 64)


def test_odd_but_real_texts_get_unit_vectors_and_no_text_at_all_an_empty_array(encoder):
    odd = ["\u200b", "\x00", "北京", "🙂", "x" * 5000, " . "]
    vectors = encoder.encode([encoder.preprocess(text) for text in odd])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 64)


def test_a_vector_is_the_mean_of_its_tokens_rows(encoder):
    from importlib.util import find_spec
    from pathlib import Path

    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    root = Path(find_spec("wordllama").submodule_search_locations[0])
    table = load_file(root / wordllama._FILES["weights"])["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(root / wordllama._FILES["tokenizer"]))
    ids = tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    total = np.zeros(64)
    for token in ids:
        total += table[token][:64].astype(np.float64)
    mean = total / len(ids)
    np.testing.assert_allclose(encoder.encode(TEXTS[:1])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_picture_is_no_text(encoder):
    with pytest.raises(ItemError) as caught:
        encoder.preprocess(Image.new("L", (4, 4)))
    assert caught.value.reason == "wrong_kind"


@pytest.mark.parametrize("text", ["", "  \n", "x" * 100_001, "half \ud83d"])
def test_texts_that_cannot_be_embedded_are_item_errors(encoder, text):
    with pytest.raises(ItemError):
        encoder.preprocess(text)
