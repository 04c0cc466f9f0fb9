"""What PTVD is asked: windows, overlaps, relevance, genres, splits and weak queries, on a world made up for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.datasets import list_items, read_item
from models.datasets.embeddings_file import map_embeddings
from models.datasets.ptvd import Ptvd, Segment
from models.datasets.ptvd_features import encoders, read_features, write_embeddings
from models.datasets.ptvd_tasks import (
    PARTS,
    Measure,
    exact_pairs,
    frame_window,
    genre_matrix,
    overlap,
    overlapping_pairs,
    pick_frames,
    read_split,
    shared_s,
    split_by_episode,
    subtitles_of,
    weak_queries,
    write_manifest,
)
from models.errors import UsageError
from tests.unit.models.datasets.ptvd_world import write_features, write_track, write_world


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = write_world(tmp_path_factory.mktemp("ptvd"))
    for seed, (encoder, dim) in enumerate([("old", 4), ("new", 6)]):
        write_features(root, encoder, dim, seed)
    return Ptvd(root)


@pytest.fixture(scope="module")
def segments(dataset):
    return [segment for episode in dataset.episodes() for segment in episode.segments]


@pytest.mark.parametrize(
    ("asked", "window"),
    [
        ((100, 50.0, 10, 20), (20, 20)),
        ((100, 50.0, 0, 50), (0, 100)),
        ((100, 50.0, 30, 30), (60, 1)),  # no length
        ((100, 50.0, 40, 90), (80, 20)),  # past the end
        ((100, 50.0, 70, 90), (99, 1)),  # begins past the end
        ((100, 50.0, 50, 50), (99, 1)),
        ((7, 10.0, 2.5, 5.0), (2, 2)),  # 1.75 and 1.75
        ((1, 10.0, 0, 10), (0, 1)),
    ],
)
def test_a_window_is_rounded_and_stays_inside_the_episode(asked, window):
    assert frame_window(*asked) == window


@given(st.integers(1, 5000), st.floats(0.5, 5000), st.floats(0, 6000), st.floats(0, 6000))
def test_every_window_holds_a_frame_and_none_beyond_the_last(frames, duration, start, length):
    first, count = frame_window(frames, duration, start, start + length)
    assert first >= 0
    assert count >= 1
    assert first + count <= frames


@pytest.mark.parametrize(
    "asked", [(0, 10.0, 0, 1), (5, 0.0, 0, 1), (5, 10.0, 2, 1), (5, 10.0, -1, 1), (5, float("nan"), 0, 1)]
)
def test_a_window_of_nothing_is_refused(asked):
    with pytest.raises(ValueError, match="no frames"):
        frame_window(*asked)


def test_frames_are_the_middles_of_equal_bins_or_drawn_from_them():
    assert pick_frames(20, 20).tolist() == [22, 27, 32, 37]
    assert pick_frames(5, 1).tolist() == [5, 5, 5, 5]
    assert pick_frames(0, 3, 2).tolist() == [0, 2]
    drawn = np.stack([pick_frames(20, 20, rng=np.random.default_rng(seed)) for seed in range(200)])
    for at in range(4):
        assert set(drawn[:, at].tolist()) == set(range(20 + 5 * at, 25 + 5 * at))
    with pytest.raises(ValueError, match="cannot pick"):
        pick_frames(0, 0)


def seg(start, end, index=0, episode="e"):
    return Segment(episode, index, start, end, "")


def test_intervals_are_open():
    assert shared_s(seg(0, 10), seg(10, 20, 1)) == 0
    assert overlap(seg(0, 10), seg(10, 20, 1)) == 0
    assert overlap(seg(0, 10), seg(5, 5, 1)) == 0
    assert overlap(seg(5, 5), seg(5, 5, 1)) == 0
    assert overlap(seg(5, 5), seg(5, 5)) == 1
    assert overlap(seg(0, 10), seg(0, 10, 0, "other")) == 0
    assert overlap(seg(0, 10), seg(5, 20, 1)) == pytest.approx(5 / 20)
    assert overlap(seg(0, 10), seg(5, 20, 1), Measure.COVERED) == pytest.approx(5 / 10)
    assert overlap(seg(10, 20), seg(0, 100, 1)) == pytest.approx(0.1)
    assert overlap(seg(10, 20), seg(0, 100, 1), Measure.COVERED) == 1


SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(SPANS, SPANS)
def test_overlap_is_what_counting_seconds_says(a, b):
    one, other = set(range(*a)), set(range(*b))
    true, second = seg(*a), seg(*b, 1)
    union = len(one | other)
    assert overlap(true, second) == pytest.approx(len(one & other) / union if union else 0)
    assert overlap(true, second, Measure.COVERED) == pytest.approx(len(one & other) / len(one) if one else 0)
    assert overlap(true, second) == overlap(second, true)


def pairs(found):
    return sorted(zip(*(column.tolist() for column in found), strict=True))


def test_relevance_is_the_own_segment_and_with_overlap_its_near_equals(segments):
    assert pairs(exact_pairs(segments, segments)) == [(i, i) for i in range(11)]
    # ep-a: 2 and 3 are the same minute; ep-c: 0-20 and 10-30 share a third of their union. Both "rain" are different segments.
    assert pairs(overlapping_pairs(segments, segments)) == sorted(
        [(i, i) for i in range(11)] + [(2, 3), (3, 2)]
    )
    covered = pairs(overlapping_pairs(segments, segments, measure=Measure.COVERED))
    assert set(covered) - set(pairs(exact_pairs(segments, segments))) == {
        (1, 0), (2, 3), (3, 2), (4, 0), (9, 10), (10, 9),
    }  # fmt: skip
    assert pairs(overlapping_pairs(segments, segments, least=1 / 3))[-2:] == [(10, 9), (10, 10)]


def test_both_directions_have_the_same_pairs_and_absent_segments_have_none(segments):
    some = segments[3:] + segments[:1]
    queries, rows = overlapping_pairs(segments, some)
    back, forth = overlapping_pairs(some, segments)
    assert sorted(zip(queries.tolist(), rows.tolist(), strict=True)) == sorted(
        zip(forth.tolist(), back.tolist(), strict=True)
    )
    assert pairs(exact_pairs(segments, some)) == sorted((segments.index(s), some.index(s)) for s in some)
    for column in exact_pairs([], segments):
        assert (column.dtype, column.shape) == (np.int64, (0,))
    for least in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="overlap"):
            overlapping_pairs(segments, segments, least=least)


def test_subtitles_are_joined_where_the_clock_is_the_same(dataset):
    a, b, c = dataset.episodes()
    assert subtitles_of(a, a.segments[0]) == "no blue hello"  # 50 to 52 only touches 10 to 50
    assert subtitles_of(a, a.segments[2]) == ""
    assert subtitles_of(b, b.segments[0]) is None
    assert subtitles_of(c, c.segments[0]) is None


def test_comments_are_weak_queries_where_the_clock_is_the_same(dataset):
    a, b, _ = dataset.episodes()
    assert [(q.key, q.text, q.count, q.segments) for q in weak_queries(a)] == [
        ("ep-a_comment0", "blue!", 2, ("ep-a_0", "ep-a_4")),
        ("ep-a_comment1", "wow", 1, ("ep-a_0", "ep-a_4")),
        ("ep-a_comment2", "wow", 1, ("ep-a_0",)),
    ]
    assert [q.text for q in weak_queries(a, least_count=2)] == ["blue!"]
    assert b.comments
    assert weak_queries(b) == []


def test_episodes_have_the_genres_of_their_series(dataset):
    every = [dataset.series(name) for name in dataset.series_names()]
    episodes, genres, matrix = genre_matrix(every)
    assert (episodes, genres) == (["ep-a", "ep-b", "ep-c"], ["comedy", "cooking", "robots"])
    assert matrix.tolist() == [[True, False, True], [True, False, True], [True, True, False]]
    assert genre_matrix(every, ["robots", "opera"])[2].tolist() == [
        [True, False],
        [True, False],
        [False, False],
    ]
    with pytest.raises(UsageError, match="two series"):
        genre_matrix([every[0], every[0]])


NAMES = st.lists(st.text("abcdef-_", min_size=1, max_size=6), min_size=2, max_size=40, unique=True)


@given(NAMES, st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))
def test_no_episode_stands_on_two_sides_of_a_split(names, test, validation, seed):
    if test + validation >= len(names):
        with pytest.raises(UsageError, match="none to train on"):
            split_by_episode(names, test=test, validation=validation, seed=seed)
        return
    parts = split_by_episode(names, test=test, validation=validation, seed=seed)
    assert tuple(parts) == PARTS
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert (len(parts["test"]), len(parts["validation"])) == (test, validation)
    assert split_by_episode(reversed(names + names), test=test, validation=validation, seed=seed) == parts


def test_seeds_split_differently():
    names = [f"ep-{i}" for i in range(50)]
    assert len({tuple(split_by_episode(names, test=10, seed=seed)["test"]) for seed in range(5)}) == 5


def test_a_published_split_is_read_and_refused_where_an_episode_is_on_both_sides(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("Name,segment_id,type\nep-b,0,train\nep-a,3,test\nep-b,1,train\n")
    assert read_split(path) == {"train": ["ep-b_0", "ep-b_1"], "test": ["ep-a_3"]}
    path.write_text(path.read_text() + "ep-a,0,train\n")
    with pytest.raises(UsageError, match="is both 'test' and 'train'"):
        read_split(path)
    path.write_text("Name,type\nep-b,train\n")
    with pytest.raises(UsageError, match="segment_id lacks"):
        read_split(path)
    for odd in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_split(odd)


def test_two_encoders_are_two_versions_of_one_gallery(dataset, segments, tmp_path):
    assert encoders(dataset) == ["new", "old"]
    keys = [segment.key for segment in segments][::-1]
    for encoder, dim in (("old", 4), ("new", 6)):
        path = tmp_path / f"{encoder}.npy"
        assert write_embeddings(dataset, encoder, keys, path) == (11, dim)
        mapped = map_embeddings(path)
        names, vectors = read_features(dataset, encoder)
        assert names == keys[::-1]
        np.testing.assert_array_equal(mapped, vectors[::-1])
        raw = np.load(dataset.folder / "features" / encoder / "ep-b.npy", allow_pickle=False)
        np.testing.assert_array_equal(mapped[keys.index("ep-b_1")], raw[1])


def test_a_manifest_is_a_source_of_a_gallery_and_its_keys_order_the_vectors(dataset, segments, tmp_path):
    empty = replace(segments[0], index=99, sentence="  ")
    keys = write_manifest([*segments[::-1], empty], tmp_path / "plots.csv")
    items = list_items(str(tmp_path / "plots.csv")).items
    assert keys == [item.key for item in items] == [segment.key for segment in segments[::-1]]
    assert [read_item(item.uri) for item in items] == [segment.sentence for segment in segments[::-1]]
    assert items[-1].label == "ep-a_0"
    assert dict(items[-1].attributes) == {"episode": "ep-a", "start_s": "10.0", "end_s": "50.0"}
    assert write_embeddings(dataset, "old", keys, tmp_path / "old.npy") == (len(items), 4)


def test_features_of_frames_are_pooled_over_the_segments_window(tmp_path):
    write_track(tmp_path / "plot" / "e.json", 10, [(0, 5, "a"), (9, 9, "b"), (20, 30, "c")])
    (tmp_path / "features" / "x").mkdir(parents=True)
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "features" / "x" / "e.npy", rows)
    names, vectors = read_features(Ptvd(tmp_path), "x", per_frame=True)
    wanted = np.stack([rows[:5].mean(axis=0), rows[9], rows[9]])
    assert names == ["e_0", "e_1", "e_2"]
    np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-6)
    with pytest.raises(UsageError, match="10 rows for 3 segments"):
        read_features(Ptvd(tmp_path), "x")


def test_features_that_lack_or_do_not_fit_are_refused(tmp_path):
    root = write_world(tmp_path)
    made = write_features(root, "x", 3, 0)
    dataset = Ptvd(root)
    with pytest.raises(UsageError, match=r"no features of 'y'.*there are x"):
        read_features(dataset, "y")
    with pytest.raises(UsageError, match="2 keys have no feature of x; the first is 'ep-a_7'"):
        write_embeddings(dataset, "x", ["ep-a_0", "ep-a_7", "other_0"], tmp_path / "out.npy")
    path = root / "features" / "x" / "ep-c.npy"
    for broken, said in (
        (made["ep-c"][:, :2], "2 dimensions; the others have 3"),
        (made["ep-c"].astype(np.float64), "must be float32"),
        (np.full_like(made["ep-c"], np.nan), "no finite"),
    ):
        np.save(path, broken)
        with pytest.raises(UsageError, match=said):
            read_features(dataset, "x")
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        read_features(dataset, "x")
