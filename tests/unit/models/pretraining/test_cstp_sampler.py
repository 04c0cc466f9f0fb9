"""The sampler of overlapping clips: labels that are true, drawn evenly; and the release's faults where they are asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pretraining.cstp_sampler import (
    PUBLISHED,
    RATES,
    RELEASED,
    SOUND,
    STEPS,
    TIME_ALONE,
    Box,
    cut,
    sample,
)  # fmt: skip

DRAWS = 4000


def draws(rules, n=DRAWS, *, frames=300, size=(320, 240), length=16, seed=0):
    rng = np.random.default_rng(seed)
    return [sample(frames, *size, rng, length=length, rules=rules) for _ in range(n)]


def shares(labels, n=5):
    return np.bincount(labels, minlength=n) / len(labels)


VIDEOS = st.tuples(st.integers(1, 400), st.integers(16, 400), st.integers(16, 400)).filter(
    lambda v: max(v[1:]) <= 3 * min(v[1:])
)


@given(VIDEOS, st.integers(2, 32), st.integers(0, 2**32 - 1))
def test_labels_say_how_much_is_shared_in_time_and_space(video, length, seed):
    frames, width, height = video
    drawn = sample(frames, width, height, np.random.default_rng(seed), length=length)
    step = STEPS[drawn.playback]
    span = (length - 1) * step
    for indices, start in zip(drawn.frames, drawn.starts, strict=True):
        assert (indices.shape, indices.dtype) == ((length,), np.int64)
        assert 0 <= indices.min() <= indices.max() < frames
        assert indices[0] == start
        assert set(np.diff(indices)) <= {step} or frames <= span
    rate = RATES[drawn.temporal]
    realised = 1 - abs(drawn.starts[1] - drawn.starts[0]) / span
    assert rate - 1e-9 <= realised <= rate + 1 / span + 1e-9
    one, other = drawn.boxes
    assert (one.width, one.height) == (other.width, other.height)
    assert one.inside(width, height)
    assert other.inside(width, height)
    assert one.shared(other) == other.shared(one)
    # The overlap's height is rounded down to a pixel, over its width.
    assert RATES[drawn.spatial] - 1 / one.height - 1e-9 < one.shared(other) <= RATES[drawn.spatial] + 1e-9


def test_where_time_is_alone_clips_of_one_start_are_one_clip_and_no_label_but_that_of_time_is_drawn():
    video = np.random.default_rng(1).integers(0, 256, (300, 40, 60, 1), np.uint8)
    found = draws(TIME_ALONE, 400, size=(60, 40))
    assert {(each.spatial, each.turns) for each in found} == {(0, (0, 0))}
    assert {each.temporal for each in found} == set(range(5))
    for each in found[:40]:
        one, other = (cut(video, each, which, rules=TIME_ALONE) for which in (0, 1))
        assert one.shape == (16, 40, 60, 1)
        assert np.array_equal(one, video[each.frames[0]])
        assert np.array_equal(one, other) == (each.temporal == 0)


@pytest.mark.parametrize(("step", "bound"), [(1, 0.067), (4, 0.017)])
def test_realised_temporal_rates_are_as_near_as_was_measured(step, bound):
    found = [d for d in draws(SOUND) if STEPS[d.playback] == step]
    gaps = [abs(1 - abs(d.starts[1] - d.starts[0]) / (15 * step) - RATES[d.temporal]) for d in found]
    assert len(found) > 500
    assert max(gaps) <= bound


@pytest.mark.parametrize("rules", [SOUND, PUBLISHED], ids=["sound", "published"])
def test_labels_are_drawn_evenly(rules):
    found = draws(rules)
    for labels in ([d.spatial for d in found], [d.temporal for d in found]):
        np.testing.assert_allclose(shares(labels), 0.2, atol=0.03)
    np.testing.assert_allclose(shares([d.playback for d in found], 4), 0.25, atol=0.03)
    for which in (0, 1):
        np.testing.assert_allclose(shares([d.turns[which] for d in found], 4), 0.25, atol=0.03)


def test_the_release_redraws_labels_and_two_thirds_are_the_easy_one():
    found = draws(replace(RELEASED, turned_first=False), 12_000)
    np.testing.assert_allclose(
        shares([d.spatial for d in found]), [0.66, 0.21, 0.086, 0.033, 0.010], atol=0.02
    )


def test_a_video_without_room_for_a_label_has_the_others_evenly():
    found = draws(SOUND, frames=22)  # one step, starts 0..6: shifts 0, 3 and 6, not 9 nor 12
    assert {d.playback for d in found} == {0}
    np.testing.assert_allclose(shares([d.temporal for d in found]), [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=0.03)


def test_both_starts_are_really_read_and_as_released_the_second_is_not():
    video = np.arange(300, dtype=np.int64).reshape(-1, 1, 1, 1).repeat(24, 1).repeat(32, 2)
    video = np.concatenate([video % 256, video // 256], axis=3).astype(np.uint8)
    for rules in (SOUND, PUBLISHED, RELEASED):
        differ = 0
        for drawn in draws(rules, 40, size=(32, 24)):
            reads = []
            for which in (0, 1):
                clip = cut(video, replace(drawn, boxes=(Box(0, 0, 9, 9),) * 2), which, rules=rules)
                reads.append(int(clip[0, 4, 4, 0]) + 256 * int(clip[0, 4, 4, 1]))
            assert reads[0] == drawn.starts[0]
            assert reads[1] == drawn.starts[1 if rules.second_start else 0]
            differ += drawn.starts[0] != drawn.starts[1]
        assert differ > 10


def test_a_short_video_gives_two_equal_clips_that_begin_anew():
    drawn = sample(10, 64, 64, np.random.default_rng(0), length=16)
    assert (drawn.temporal, drawn.playback, drawn.starts) == (0, 0, (0, 0))
    for indices in drawn.frames:
        assert indices.tolist() == [*range(10), *range(6)]
    # Exactly the span: still too short, for a clip takes one frame more.
    drawn = [sample(30, 64, 64, np.random.default_rng(seed), length=16) for seed in range(40)]
    assert {tuple(d.frames[0]) for d in drawn if d.playback == 1} == {(*range(0, 30, 2), 0)}


SHOWN = np.stack(np.meshgrid(np.arange(160), np.arange(120)), axis=-1)[None].astype(
    np.uint8
)  # (1, H, W, (x, y))


def positions(clip):
    return set((clip[0, ..., 0] + 256 * clip[0, ..., 1].astype(np.int64)).ravel().tolist())


def test_cropped_first_the_label_is_the_share_of_content_whatever_the_turns():
    for drawn in draws(SOUND, 60, frames=1, size=(160, 120)):
        one, other = (positions(cut(SHOWN, drawn, which)) for which in (0, 1))
        area = drawn.boxes[0].width * drawn.boxes[0].height
        assert len(one) == len(other) == area
        assert len(one & other) / area == pytest.approx(drawn.boxes[0].shared(drawn.boxes[1]))
        assert abs(len(one & other) / area - RATES[drawn.spatial]) < 1 / drawn.boxes[0].height


def test_turned_first_crops_of_clips_that_differ_by_90_degrees_leave_the_frame():
    found = draws(RELEASED, 6000)
    across = [d for d in found if (d.turns[0] - d.turns[1]) % 2]
    size = [(240, 320) if d.turns[1] % 2 else (320, 240) for d in across]
    leaving = np.mean([not d.boxes[1].inside(*s) for d, s in zip(across, size, strict=True)])
    assert leaving == pytest.approx(0.56, abs=0.03)
    same = [d for d in found if not (d.turns[0] - d.turns[1]) % 2]
    assert np.mean([d.boxes[1].inside(*((240, 320) if d.turns[1] % 2 else (320, 240))) for d in same]) > 0.99
    off = Box(150, 110, 20, 20)
    drawn = replace(found[0], frames=(np.zeros(1, np.int64),) * 2, boxes=(off, off), turns=(0, 0))
    clip = cut(SHOWN + 1, drawn, 0, rules=RELEASED)
    assert clip[0, :10, :10].all()
    assert not clip[0, 10:].any()
    assert not clip[0, :, 10:].any()


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("rules", [SOUND, PUBLISHED], ids=["sound", "published"])
def test_a_clip_is_turned_against_the_clock(turn, rules):
    video = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    whole = Box(0, 0, 3, 4) if rules.turned_first and turn % 2 else Box(0, 0, 4, 3)
    drawn = replace(
        draws(SOUND, 1)[0], frames=(np.zeros(1, np.int64),) * 2, boxes=(whole,) * 2, turns=(turn,) * 2
    )
    np.testing.assert_array_equal(
        cut(video, drawn, 1, rules=rules)[0, ..., 0], np.rot90(video[0, ..., 0], turn)
    )


def test_one_seed_draws_one_sample_and_nonsense_is_refused():
    assert repr(draws(SOUND, 5)) == repr(draws(SOUND, 5))
    for frames, width, height, length in (
        (0, 64, 64, 16),
        (9, 64, 64, 1),
        (9, 15, 64, 16),
        (9, 64, 15, 16),
        (9, 64, 193, 16),
    ):
        with pytest.raises(ValueError, match="cannot cut"):
            sample(frames, width, height, np.random.default_rng(0), length=length)
