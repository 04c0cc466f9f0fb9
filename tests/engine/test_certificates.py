"""What a certificate keeps: the measured recalls, how sure they are, the flips, and the verdict over them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cli.main import main
from orchestrator.core.significance import mcnemar_p
from orchestrator.errors import ExitCode
from orchestrator.service import certify as certify_module
from orchestrator.service import galleries, listings
from orchestrator.service.certify import CertifyRequest, certify
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def certified(context, new="kin", **more):
    return certify(context, CertifyRequest("old", new, "pics", minimum_queries=20, **more))


def test_a_certificate_keeps_intervals_that_hold_what_was_measured(world, tmp_path):
    platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    measured = certified(world, "far").measured
    intervals = measured["intervals"]
    assert (intervals["resamples"], intervals["confidence"]) == (2000, 0.95)
    points = {
        "old_old": measured["old_old"],
        "new_old": measured["new_old"],
        "new_new": measured["new_new"],
        "start_difference": measured["new_old"] - measured["old_old"],
    }
    for name, point in points.items():
        assert intervals[name]["low"] <= point + 1e-9, name
        assert point - 1e-9 <= intervals[name]["high"], name
    assert intervals["new_old"]["low"] < intervals["new_old"]["high"]
    # The worst state of each draw is at most the one that is worst over all: the interval may lie lower, never higher.
    assert intervals["lowest_difference"]["low"] <= measured["lowest"] - measured["old_old"]


def test_the_flips_of_a_certificate_add_up_to_its_recalls(world, tmp_path):
    platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    measured = certified(world, "far").measured
    flips = measured["flips"]
    for name, value in (("start", measured["new_old"]), ("worst", measured["lowest"])):
        found = flips[name]
        assert found["queries"] == measured["queries"]
        gained = (found["positive"] - found["negative"]) / found["queries"]
        assert gained == pytest.approx(value - measured["old_old"])
        assert found["mcnemar_p"] == mcnemar_p(found["negative"], found["positive"])
    assert flips["start"]["negative"] + flips["start"]["positive"] > 0, (
        "nothing flipped: the test would show nothing"
    )
    assert flips["start"]["coverage"] == 0


def test_the_same_seed_measures_the_same_and_another_draws_other_queries(world, tmp_path):
    platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    once, again, other = (certified(world, "far", seed=seed).measured for seed in (4, 4, 5))
    assert once == again
    assert once["uncalibrated"]["intervals"] != other["uncalibrated"]["intervals"]
    assert once["calibration"]["halves"] != other["calibration"]["halves"]


def test_a_stranger_is_refused_for_flips_that_are_no_chance(world, tmp_path):
    platform.register_network(world, tmp_path, "stranger", seed=5)
    row = certified(world, "stranger")
    assert row.verdict == "refused"
    assert row.measured["flips"]["start"]["mcnemar_p"] < 1e-6
    assert "queries turned wrong" in row.reason
    assert "chance" not in row.reason


def harder_queries(monkeypatch, seed):
    """Both models' query embeddings get noise of their own, the old model's a little more: each is wrong now and then."""
    encode, rng = certify_module.encode_uris, np.random.default_rng(seed)

    def noisy(encoder, uris, *more):
        vectors, failed = encode(encoder, uris, *more)
        if all("/queries/" in uri for uri in uris):
            strength = 0.16 if encoder.manifest.name == "old" else 0.15
            vectors = vectors + rng.normal(0, strength, vectors.shape).astype(np.float32)
        return vectors, failed

    monkeypatch.setattr(certify_module, "encode_uris", noisy)


def test_a_tolerance_smaller_than_the_doubt_makes_a_pair_inconclusive(world):
    """A pair that its point estimate certifies, while its interval does not exclude a small loss."""
    for seed in range(20):
        with pytest.MonkeyPatch.context() as patch:
            harder_queries(patch, seed)
            row = certified(world)
        low = min(row.measured["intervals"][f"{where}_difference"]["low"] for where in ("start", "lowest"))
        if row.verdict == "certified" and low < 0:
            break
    else:
        raise AssertionError("no seed gives a pair that is certified and in doubt")

    def again(tolerance):
        with pytest.MonkeyPatch.context() as patch:
            harder_queries(patch, seed)
            return certified(world, tolerance=tolerance)

    strict = again(-low / 2)
    assert (strict.verdict, strict.measured["tolerance"]) == ("inconclusive", -low / 2)
    assert "not excluded" in strict.reason
    assert again(-low * 1.01).verdict == "certified"


def test_the_command_prints_recalls_with_intervals_and_flips(world, environment, capsys):
    command = ["model", "certify", "old", "kin", "--gallery", "pics", "--minimum-queries", "20"]
    capsys.readouterr()
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    for says in ("old queries, old gallery", "new − old at 0 %", "lowest − old along it"):
        line = next(line for line in lines if line.startswith(says))
        assert " to " in line
    assert any(line.split()[:1] == ["flips"] for line in lines)
    assert any(line.startswith("start, 0%") for line in lines)
    assert lines[-1].startswith("certified: ")
    assert main([*command, "--tolerance", "2"]) == ExitCode.USAGE


def test_a_rollout_shows_the_random_refresh_that_its_certificate_saw_beside_its_own(world):
    curve = certified(world).measured["curve"]
    rollout = platform.start(world)
    platform.work(world, rollout.id)
    rows = listings.view(world, "refresh_curve", rollout=rollout.id, metric="recall_at_1")
    simulated = [row for row in rows if row["against_order"] == "random"]
    assert [(row["coverage"], row["value"]) for row in simulated] == [
        (p["coverage"], p["value"]) for p in curve
    ]
    assert len(simulated) > 2
    assert {row["against_order"] for row in rows} == {"random", "measured"}


def test_what_was_simulated_on_a_sample_is_not_laid_beside_the_whole_gallery(world, tmp_path):
    for folder in sorted(platform.draw_pictures(tmp_path / "few", 3, seed=9).iterdir())[20:]:
        shutil.rmtree(folder)
    galleries.import_query_set(world, "pics", "few", str(tmp_path / "few"))
    measured = certified(world, query_set="few", sample=150).measured
    assert (measured["sampled_items"], measured["gallery_items"]) == (150, 240)
    rollout = platform.start(world)
    assert listings.view(world, "refresh_curve", rollout=rollout.id, against_order="random") == []
