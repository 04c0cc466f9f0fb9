import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import load_manifest
from models.encoders import factory, load_encoder
from models.errors import ArtifactError, UsageError


class Own:
    """Mean colours of a 2x2 grid, times `gain` on the first coordinate."""

    def __init__(self, gain=1.0, answer=None):
        self.gain, self.answer = gain, answer

    def preprocess(self, item):
        return np.asarray(item.convert("RGB").resize((2, 2)), np.float32).ravel() + 1

    def encode(self, prepared):
        if self.answer is not None:
            return self.answer(prepared)
        vectors = np.stack(prepared)
        vectors[:, 0] *= self.gain
        return torch.from_numpy(vectors)


class Letters:
    modality = "text"

    def encode(self, texts):
        return np.array([[text.count(letter) + 1 for letter in "aeio"] for text in texts], np.float64)


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("somebodys_encoders")
    module.make, module.letters, module.nothing = Own, Letters, lambda: None
    monkeypatch.setitem(sys.modules, "somebodys_encoders", module)
    return module


def test_a_users_image_encoder_is_registered_called_and_normalised(tmp_path, own_module):
    factory.create(tmp_path / "e", "mine", "somebodys_encoders:make", {"gain": 2.0})
    encoder = load_encoder(tmp_path / "e", own_code=True)
    assert (encoder.dim, encoder.modality) == (12, "image")
    vectors = encoder.encode([encoder.preprocess(Image.new("L", (5, 7), 100)) for _ in range(3)])
    assert vectors.shape == (3, 12)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert load_manifest(tmp_path / "e").options["factory"] == "somebodys_encoders:make"


def test_a_users_text_encoder_needs_no_preprocess(tmp_path, own_module):
    factory.create(tmp_path / "e", "mine", "somebodys_encoders:letters")
    encoder = load_encoder(tmp_path / "e", own_code=True)
    assert (encoder.dim, encoder.modality) == (4, "text")
    assert encoder.encode([encoder.preprocess("banana")])[0].argmax() == 0


def test_a_changed_encoder_under_an_old_name_is_refused(tmp_path, own_module):
    factory.create(tmp_path / "e", "mine", "somebodys_encoders:make")
    own_module.make = lambda: Own(gain=-5.0)
    with pytest.raises(ArtifactError, match="no longer answers"):
        load_encoder(tmp_path / "e", own_code=True)


def test_other_options_are_another_space(tmp_path, own_module):
    one = factory.create(tmp_path / "1", "mine", "somebodys_encoders:make", {"gain": 1.0})
    two = factory.create(tmp_path / "2", "mine", "somebodys_encoders:make", {"gain": 3.0})
    assert one.fingerprint != two.fingerprint


def test_a_vanished_factory_is_an_artifact_error(tmp_path, own_module):
    factory.create(tmp_path / "e", "mine", "somebodys_encoders:make")
    del own_module.make
    with pytest.raises(ArtifactError, match="could not be called"):
        load_encoder(tmp_path / "e", own_code=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebodys_encoders", "write module:factory"),
        ("no_such_module_anywhere:make", "could not be called"),
        ("somebodys_encoders:missing", "could not be called"),
        ("somebodys_encoders:nothing", "has no encode"),
    ],
)
def test_what_is_no_factory_is_a_usage_error(tmp_path, own_module, name, message):
    with pytest.raises(UsageError, match=message):
        factory.create(tmp_path / "e", "mine", name)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda items: np.zeros((len(items), 3)), "zero or not finite"),
        (lambda items: np.full((len(items), 3), np.nan), "zero or not finite"),
        (lambda items: np.ones(3), "returned shape"),
        (lambda items: 1 / 0, "could not embed"),
    ],
)
def test_an_encoder_that_returns_no_vectors_is_a_usage_error(tmp_path, own_module, answer, message):
    own_module.make = lambda: Own(answer=answer)
    with pytest.raises(UsageError, match=message):
        factory.create(tmp_path / "e", "mine", "somebodys_encoders:make")
