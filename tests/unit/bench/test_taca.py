"""The benchmark of adapted encoders, in small: every arm is measured under the same frozen modules."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench import taca
from models.downstream import ClassificationHead


def test_a_quick_run_measures_every_arm(tmp_path):
    said = []
    result = taca.run(quick=True, say=said.append, folder=tmp_path)
    assert json.loads((tmp_path / "taca.json").read_text()) == json.loads(json.dumps(result))
    arms = [*taca.ARMS[:-1], "adapters, parallel, lambda 0", taca.RETRAINED]
    assert [row["name"].partition(":")[0] for row in result["rows"]] == [
        f"{metric}, {arm}" for metric in taca.METRICS for arm in arms
    ]
    assert all(0 < row["value"] <= 1 for row in result["rows"])
    counts = {arm: about["parameters"] for arm, about in result["arms"].items()}
    # 2 layers x (2 * 24 * 4 + 24 + 4), and two adapters of half the rank a layer; the map 96 * 48 + 48.
    assert counts["adapters, parallel"] == counts["adapters, serial"] == 2 * (2 * 24 * 4 + 28) + 96 * 48 + 48
    assert counts["adapters, symmetric"] == 4 * (2 * 24 * 2 + 26) + 96 * 48 + 48
    assert counts[taca.LINEAR] == 96 * 48 + 48


def test_no_picture_of_the_test_is_trained_on_and_the_old_model_sees_half_of_the_classes():
    world = taca.load(taca.QUICK)
    assert set(world.test.labels) <= set(world.train.labels)
    assert len(set(world.train.labels)) == 24
    assert 40 < len(world.test.labels) <= 24 * len(taca.TEST_FACES)
    assert set(world.old_train.labels) == world.old_classes
    assert len(world.old_classes) == 12
    seen = {picture.tobytes() for picture in world.train.pixels}
    shared = sum(picture.tobytes() in seen for picture in world.test.pixels)
    assert shared == 0


def test_a_run_in_which_a_frozen_module_changes_fails(monkeypatch, tmp_path):
    judge = ClassificationHead.evaluate

    def drifting(self, features, labels):
        self.weight[0, 0] += 1
        return judge(self, features, labels)

    monkeypatch.setattr(ClassificationHead, "evaluate", drifting)
    sizes = dataclasses.replace(taca.QUICK, classes=6, adapt_epochs=0.2, steps=2, contrasts=(1.0,))
    with pytest.raises(AssertionError, match="a frozen module was changed"):
        taca.of_seed(taca.load(sizes), sizes, 0, tmp_path, lambda text: None)
