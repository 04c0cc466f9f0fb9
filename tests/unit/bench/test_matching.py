"""The benchmark of copy detection, in small: every arm is measured, and a threshold is judged as it is written."""

from __future__ import annotations

import json

import numpy as np

from bench import matching
from models.matching import ScoredPair
from models.matching.local import Features


def test_a_quick_run_measures_every_arm_and_each_part_adds_something(tmp_path):
    said = []
    result = matching.run(quick=True, say=said.append, folder=tmp_path)
    assert json.loads((tmp_path / "matching.json").read_text()) == result
    assert [each.split(": ")[1] for each in said] == ["features", "branches", "background"]
    arms = [f"{metric}, {arm}" for metric in ("micro-AP", "recall@P90") for arm in matching.ARMS]
    names = [row["name"].partition(":")[0] for row in result["rows"]]
    assert names[: len(arms)] == arms
    by_background = {
        name: row["value"] for name, row in zip(names, result["rows"], strict=True) if name not in arms
    }
    assert by_background["micro-AP of cosines, thumbnail, raw"] == ap_of(result, matching.GLOBAL)
    assert (
        sum("half refreshed" in name for name in by_background) == 5
    )  # raw, and two settings of own and other version
    ap = {arm: row["value"] for arm, row in zip(matching.ARMS, result["rows"], strict=False)}
    assert ap[matching.VERIFIED] < ap[matching.LOCAL] < ap[matching.MIRRORED_VOTES] <= 1
    asked = [text.partition("/")[2] for text in result["found_at_p90_by_edit"][matching.LOCAL].values()]
    assert asked == ["2"] * 7  # two copied regions, seven edits


def ap_of(result, arm):
    [found] = [row["value"] for row in result["rows"] if row["name"].startswith(f"micro-AP, {arm}:")]
    return found


def test_what_is_right_is_counted_from_the_threshold_on():
    nothing = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    one = np.ones((1, 1), np.float32)
    labels = {"p/crop": "p", "q/flip": "q", "s/flip": "s"}
    edits = {key: key.partition("/")[2] for key in labels}
    world = matching.World({"p": nothing, "q": nothing}, one, [], [], one, labels, edits)
    pairs = [ScoredPair("p/crop", "p", 3.0), ScoredPair("s/flip", "p", 2.0), ScoredPair("q/flip", "q", 1.0)]
    metrics = matching.judge(world, pairs)
    assert world.truth == [("p/crop", "p"), ("q/flip", "q")]
    assert (metrics.recall_at_precision, metrics.threshold) == (0.5, 3.0)
    assert matching.right(world, pairs, metrics) == ["crop"]


def test_the_embedding_is_of_length_one_and_ignores_brightness():
    picture = matching._picture(matching._items("references", "0")[0])
    brighter = picture.point(lambda value: value // 2 + 60)
    assert abs(np.linalg.norm(matching.thumbnail(picture)) - 1) < 1e-5
    assert matching.thumbnail(picture) @ matching.thumbnail(brighter) > 0.999
