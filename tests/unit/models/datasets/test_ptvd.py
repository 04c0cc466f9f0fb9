"""Reading PTVD's files: what is odd in them is kept or flagged, what is broken is refused, nothing is run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.datasets import ptvd
from models.datasets.ptvd import Comment, Ptvd, Row, Track, collapsed, read_names, read_printed, read_track
from models.errors import ItemError, UsageError
from tests.unit.models.datasets.ptvd_world import PLOTS, write_track, write_world


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Ptvd(write_world(tmp_path_factory.mktemp("ptvd")))


def test_an_episode_keeps_its_segments_in_the_files_order_nested_unsorted_empty_and_past_the_end(dataset):
    episode = dataset.episode("ep-a")
    assert [(s.start_s, s.end_s, s.sentence) for s in episode.segments] == PLOTS["ep-a"][1]
    assert [s.key for s in episode.segments] == [f"ep-a_{i}" for i in range(7)]
    assert [s.index for s in episode.past_the_end] == [6]
    assert episode.frames == 4
    assert [path.stem for path in dataset.frames("ep-a")] == ["ep-a-9", "ep-a-10", "ep-a-200", "ep-a-1000"]
    assert dataset.episode_names() == ["ep-a", "ep-b", "ep-c"]
    assert [e.name for e in dataset.episodes()] == ["ep-a", "ep-b", "ep-c"]


def test_comments_are_collapsed_by_time_and_text_with_counts_and_sorted(dataset):
    assert dataset.episode("ep-a").comments == (
        Comment(12, 17, "blue!", 2),
        Comment(12, 17, "wow", 1),
        Comment(45, 50, "wow", 1),
        Comment(85, 90, "nobody is here", 1),
    )
    assert dataset.episode("ep-c").comments == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=30))
def test_collapsing_loses_no_comment_and_says_nothing_twice(said):
    rows = tuple(Row(float(start), start + 5.0, text) for start, text in said)
    found = collapsed(rows)
    assert sum(c.count for c in found) == len(rows)
    assert len({(c.start_s, c.end_s, c.text) for c in found}) == len(found)
    assert [(c.start_s, c.text) for c in found] == sorted((c.start_s, c.text) for c in found)


def test_clocks_that_differ_are_flagged_and_small_differences_are_not(dataset):
    assert dataset.episode("ep-a").unaligned == ()
    assert dataset.episode("ep-a").durations_s == {"plot": 100.0, "comments": 100.0, "subtitles": 100.2}
    assert dataset.episode("ep-b").unaligned == ("comments", "subtitles")
    assert dataset.episode("ep-c").unaligned == ()


TIMES = st.floats(0, 1e5, allow_nan=False)


@given(st.floats(0.01, 1e6), st.lists(st.tuples(TIMES, TIMES, st.text(max_size=10)), max_size=8))
def test_a_track_written_and_read_again_is_equal(tmp_path_factory, duration, rows):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    made = Track(duration, tuple(Row(min(a, b), max(a, b), text) for a, b, text in rows))
    path.write_text(json.dumps(made.document()), encoding="utf-8")
    assert read_track(path) == made


def test_a_series_is_read_from_printed_python(dataset):
    assert dataset.series_names() == ["harbour", "kitchen"]
    series = dataset.series("harbour")
    assert (series.title, series.published, series.description) == (
        "The harbour",
        "2020-01-02",
        "It's made up.",
    )
    assert series.genres == ("comedy", "robots")
    assert series.genre_ids == ("0", "1")
    assert series.cast == ("A. Person", "B. Person")
    assert series.regions == ("Nowhere",)
    assert series.episodes == ("ep-a", "ep-b")
    assert series.synopsis == "Made up as well."


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('touch ran')", "[x for x in (1,)]", "open('ran', 'w')", "{'a': ", "(" * 5000, "-" * 100_000 + "1",
     "9" * 10_000, "", "\0"],
)  # fmt: skip
def test_a_printed_file_is_never_run_and_what_is_no_literal_is_corrupt(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "printed.txt"
    path.write_text(text)
    with pytest.raises(ItemError) as refused:
        read_printed(path)
    assert refused.value.reason == "corrupt"
    assert not (tmp_path / "ran").exists()


def test_a_printed_file_over_the_cap_is_not_even_parsed(tmp_path):
    path = tmp_path / "printed.txt"
    path.write_text("[" + "1," * 100 + "]")
    assert read_printed(path) == [1] * 100
    with pytest.raises(ItemError) as refused:
        read_printed(path, cap_bytes=50)
    assert refused.value.reason == "too_large"
    path.write_text("[" + "1," * ptvd.MAX_PRINTED_BYTES + "]")
    with pytest.raises(ItemError, match="limit") as refused:
        read_printed(path)
    assert refused.value.reason == "too_large"


@pytest.mark.parametrize("text", ["{'a': 1}", "[1]", "['../../etc']", "['ok', '']", "'ep-a'"])
def test_a_list_of_episodes_holds_names_and_nothing_else(tmp_path, text):
    path = tmp_path / "vids.txt"
    path.write_text(text)
    with pytest.raises(ItemError, match="no list of names"):
        read_names(path)


GOOD = {"duration": 10, "timestamps": [[0, 5]], "sentences": ["a"]}
BROKEN = {
    "no object": "[1]",
    "no JSON": "{'duration': 1}",
    "nested too deeply": "[" * 100_000,
    "a column lacks": json.dumps({k: v for k, v in GOOD.items() if k != "duration"}),
    "lengths differ": json.dumps(GOOD | {"sentences": []}),
    "not a list": json.dumps(GOOD | {"timestamps": "ab"}),
    "ends before it begins": json.dumps(GOOD | {"timestamps": [[5, 4]]}),
    "negative": json.dumps(GOOD | {"timestamps": [[-1, 4]]}),
    "not finite": json.dumps(GOOD | {"timestamps": [[0, float("nan")]]}),
    "infinite": '{"duration": 1e999, "timestamps": [], "sentences": []}',
    "beyond float": json.dumps(GOOD | {"timestamps": [[0, 10**400]]}),
    "no number": json.dumps(GOOD | {"timestamps": [["0", 4]]}),
    "yes is no time": json.dumps(GOOD | {"timestamps": [[False, True]]}),
    "three times": json.dumps(GOOD | {"timestamps": [[0, 1, 2]]}),
    "no text": json.dumps(GOOD | {"sentences": [7]}),
    "no duration": json.dumps(GOOD | {"duration": 0}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_track_is_corrupt(tmp_path, text):
    path = tmp_path / "track.json"
    path.write_text(json.dumps(GOOD))
    assert read_track(path) == Track(10.0, (Row(0.0, 5.0, "a"),))
    path.write_text(text)
    with pytest.raises(ItemError) as refused:
        read_track(path)
    assert refused.value.reason == "corrupt"


def test_missing_odd_and_overlarge_files_have_reasons_of_their_own(tmp_path, monkeypatch):
    path = write_track(tmp_path / "t.json", 10, [(0, 1, "a"), (1, 2, "b")])
    reasons = []
    monkeypatch.setattr(ptvd, "MAX_ROWS", 1)
    (tmp_path / "latin").write_bytes(b'{"\xe9": 1}')
    for odd in (tmp_path / "none.json", tmp_path, tmp_path / "latin", path):
        with pytest.raises(ItemError) as refused:
            read_track(odd)
        reasons.append(refused.value.reason)
    monkeypatch.setattr(ptvd, "MAX_TRACK_BYTES", 10)
    with pytest.raises(ItemError) as refused:
        read_track(path)
    assert [*reasons, refused.value.reason] == ["missing", "unsupported", "corrupt", "too_large", "too_large"]


@pytest.mark.parametrize("name", ["../plot/ep-a", "", "ep a", "a/b", "ep-a\n"])
def test_a_name_leads_out_of_no_folder(dataset, name):
    for ask in (dataset.episode, dataset.series, dataset.frames):
        with pytest.raises(ItemError, match="no name"):
            ask(name)


def test_a_folder_without_a_plot_is_no_data_set(tmp_path):
    with pytest.raises(UsageError, match="no PTVD"):
        Ptvd(tmp_path)
    (tmp_path / "plot").mkdir()
    with pytest.raises(UsageError, match="no episode"):
        Ptvd(tmp_path).episode_names()
    with pytest.raises(ItemError) as refused:
        Ptvd(tmp_path).episode("ep-a")
    assert refused.value.reason == "missing"


@pytest.mark.parametrize("answer", ["[]", "{'results': []}", "{'results': [{'fields': 3}]}", "7"])
def test_metadata_of_another_shape_is_corrupt_and_fields_that_lack_are_empty(tmp_path, answer):
    root = write_world(tmp_path)
    place = root / "metadata" / "harbour"
    (place / "meta_txsp.json").write_text(
        "{'results': [{'fields': {'detailed_division_type_name': 'drama'}}]}"
    )
    (place / "long_video_vids.txt").unlink()
    series = Ptvd(root).series("harbour")
    assert (series.title, series.genres, series.cast, series.episodes) == ("", ("drama",), (), ())
    (place / "meta_txsp.json").write_text(answer)
    with pytest.raises(ItemError) as refused:
        Ptvd(root).series("harbour")
    assert refused.value.reason == "corrupt"
