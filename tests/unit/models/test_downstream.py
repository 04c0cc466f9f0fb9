"""Frozen heads and text towers: what they measure, what their digest says, how they are kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models import downstream
from models.artifact import save_artifact
from models.downstream import ClassificationHead, TextTower, fit_head, fit_text_tower
from models.errors import ArtifactError, UsageError

TEXTS = ("GREEK SMALL LETTER ALPHA", "GREEK CAPITAL LETTER ALPHA", "LATIN SMALL LETTER A", "DOUBLE-STRUCK N")


def features(seed: int = 0, each: int = 20):
    """Four clusters on the unit sphere of R^6, and their texts."""
    centres = np.random.default_rng(9).standard_normal((4, 6))
    rng = np.random.default_rng(seed)
    rows = np.repeat(centres, each, axis=0) + 0.2 * rng.standard_normal((4 * each, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), tuple(np.repeat(TEXTS, each).tolist())


def modules():
    rows, labels = features()
    return fit_head(rows, labels, steps=200), fit_text_tower(rows, labels, steps=200)


def test_a_head_and_a_tower_work_on_new_features_of_their_space_and_not_on_others():
    rows, labels = features(1)
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0].astype(np.float32)
    for module in modules():
        assert module.evaluate(rows, labels) > 0.95
        assert module.evaluate(rows @ turned, labels) < 0.8


def test_evaluating_changes_no_byte_and_a_changed_byte_is_seen():
    rows, labels = features(1)
    head, tower = modules()
    digests = head.digest, tower.digest
    head.evaluate(rows, labels)
    tower.evaluate(rows, labels)
    assert (head.digest, tower.digest) == digests
    assert digests == tuple(each.digest for each in modules())
    weight, table = head.weight.copy(), tower.table.copy()
    weight[0, 0] = np.nextafter(weight[0, 0], 9)
    table[0, 0] = np.nextafter(table[0, 0], 9)
    assert dataclasses.replace(head, weight=weight).digest != digests[0]
    assert dataclasses.replace(tower, table=table).digest != digests[1]


def test_accuracy_and_average_precision_by_hand():
    head = ClassificationHead(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), ("a", "b"))
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    assert head.evaluate(rows, ("a", "a", "b")) == pytest.approx(2 / 3)
    tower = TextTower(np.eye(2, dtype=np.float32), ("a", "b"))
    # "a" ranks rows 0, 1, 2, of which 0 and 2 are right: (1/1 + 2/3) / 2. "b" ranks 2, 1, 0; right is 1: 1/2.
    assert tower.evaluate(rows, ("a", "b", "a")) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_a_text_is_the_mean_of_its_words_and_unknown_words_are_passed_over():
    tower = TextTower(np.array([[1, 0], [0, 1]], np.float32), ("double", "n"))
    np.testing.assert_allclose(
        tower.encode(["DOUBLE-N", "n other"]), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6
    )
    with pytest.raises(UsageError, match="no word of 'other'"):
        tower.encode(["other"])


def test_an_artifact_brings_the_module_back_under_its_digest(tmp_path):
    rows, labels = features(1)
    for name, module in zip("ht", modules(), strict=True):
        manifest = downstream.save(module, tmp_path / name, name, "f00d")
        assert manifest.digest == module.digest
        assert (manifest.kind, manifest.options["space_fingerprint"]) == ("downstream", "f00d")
        again = downstream.load(tmp_path / name)
        assert again.digest == module.digest
        assert again.evaluate(rows, labels) == module.evaluate(rows, labels)


def test_what_does_not_fit_is_said(tmp_path):
    rows, labels = features(1)
    for module in modules():
        with pytest.raises(UsageError, match="6 dims cannot be used"):
            module.evaluate(rows[:, :5], labels)
        with pytest.raises(UsageError, match="6 dims cannot be used"):
            module.evaluate(rows, labels[:-1])
    with pytest.raises(UsageError, match="no class 'OTHER'"):
        modules()[0].evaluate(rows, ("OTHER",) * len(rows))
    head = modules()[0]
    downstream.save(dataclasses.replace(head, classes=head.classes[:3]), tmp_path / "short", "short", "f00d")
    with pytest.raises(ArtifactError, match="does not fit its manifest"):
        downstream.load(tmp_path / "short")
    about = {"name": "x", "options": {}, "modality": "image", "preprocessing": {}, "dim": 6}
    save_artifact(tmp_path / "e", head.tensors, kind="encoder", architecture="linear_head", **about)
    with pytest.raises(ArtifactError, match="not a downstream module"):
        downstream.load(tmp_path / "e")
    save_artifact(tmp_path / "u", head.tensors, kind="downstream", architecture="oracle", **about)
    with pytest.raises(ArtifactError, match="no downstream module that is known: 'oracle'"):
        downstream.load(tmp_path / "u")
