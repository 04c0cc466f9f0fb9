"""The arithmetic of `bench methods`: intervals, undefined values, tables. The trainings have tests of their own."""

import csv
import math

import numpy as np
import pytest

from bench.upgrades import picture_jobs, table
from bench.upgrades.data import relevance_of
from bench.upgrades.job import Job, result_of
from bench.upgrades.jobs import jobs_of, needs, work
from bench.upgrades.summary import Figure, metrics_of, write_csv
from models.errors import UsageError


def figure(*values, metric="new_old", order="", arm="ract"):
    return Figure("glyphs", "open-class", arm, order, metric, values)


def result(recall, nfr=None, **changes):
    curve = {
        "coverage": [state / 21 for state in range(22)],
        "recall": recall,
        "nfr": nfr or [0.0] * 22,
        "nfr_previous": [0.0, *[0.01] * 21],
    }
    found = {
        "old_old": 0.5,
        "new_old": recall[0],
        "new_new": recall[-1],
        "start_nfr": 0.1,
        "orders": {"entropy": [curve]},
    }
    return found | changes


def test_the_interval_is_students_over_the_seeds():
    found = figure(0.60, 0.62, 0.67)
    assert found.mean == pytest.approx(0.63)
    assert found.half_width == pytest.approx(
        4.303 * np.std([0.60, 0.62, 0.67], ddof=1) / math.sqrt(3), rel=1e-4
    )
    assert figure(0.6).half_width is None


def test_a_mean_over_the_lucky_seeds_is_no_mean():
    assert figure(0.6, None, 0.7).mean is None
    assert figure(0.6, None, 0.7).half_width is None
    assert table.cell(figure(0.6, None, 0.7)) == "–"


def test_gain_and_tax_are_relative_to_the_model_without_a_compatibility_term():
    found = metrics_of(result(np.linspace(0.6, 0.7, 22).tolist()), best_best=0.9)
    assert found["", "tax"] == pytest.approx(0.2)
    assert found["", "update_gain"] == pytest.approx(0.25)


def test_a_curve_that_jumps_after_the_start_has_the_published_areas():
    found = metrics_of(result([0.5, *[0.7] * 21]), best_best=0.7)
    assert found["entropy", "area_22_states"] == pytest.approx(21 / 22)
    assert found["entropy", "area"] == pytest.approx(41 / 42)
    assert found["entropy", "coverage_90"] == pytest.approx(0.9 / 21)
    assert found["entropy", "lowest_over_old"] == pytest.approx(0.0)


def test_where_nothing_is_gained_the_relative_metrics_are_undefined_and_the_others_are_not():
    found = metrics_of(result([0.4] * 22, nfr=[0.2] * 22), best_best=0.45)
    assert found["", "update_gain"] is None
    assert found["entropy", "area"] is None
    assert found["entropy", "coverage_90"] is None
    assert found["entropy", "lowest_over_old"] == pytest.approx(-0.1)
    assert found["entropy", "mean_nfr"] == pytest.approx(0.2)


def test_flips_to_the_stage_before_leave_the_first_stage_out_of_their_mean():
    assert metrics_of(result([0.6] * 22), 0.9)["entropy", "mean_nfr_previous"] == pytest.approx(0.01)


def test_several_random_orders_are_averaged():
    both = result([0.6] * 22)
    both["orders"]["random"] = [{**both["orders"]["entropy"][0], "nfr": [level] * 22} for level in (0.1, 0.3)]
    assert metrics_of(both, 0.9)["random", "mean_nfr"] == pytest.approx(0.2)


def test_the_tables_show_every_arm_and_leave_out_what_was_not_measured():
    figures = [
        figure(0.5, 0.5, metric="old_old"),
        figure(0.6, 0.62),
        figure(0.9, 0.9, metric="area", order="entropy"),
        figure(0.8, 0.8, metric="area", order="random"),
        figure(0.55, 0.55, arm="query-side low_rank"),
    ]
    text = table.markdown(figures)
    rows = {
        line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")
    }
    assert rows["query-side low_rank"].count("–") > 10
    assert ".610 ± .127" in text
    assert "M(old,old) = .500 ± .000" in text


def test_the_overview_has_a_row_an_arm_and_a_column_a_split_with_a_refresh():
    def refreshed(split, arm, value):
        return Figure("glyphs", split, arm, "entropy", "mean_nfr", (value, value))

    chain = Figure("glyphs", "v1-v2-v3", "ract", "", "v3_v1", (0.5, 0.5))
    text = table.overview([refreshed("a", "bct", 0.1), refreshed("b", "ract", 0.2), chain])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        *("| arm | glyphs a | glyphs b |", "| --- | --- | --- |"),
        *("| arm | glyphs a | glyphs b |", "| --- | --- | --- |"),
        "| bct | .100 ± .000 | – |",
        "| ract | – | .200 ± .000 |",
        *("| arm | glyphs a | glyphs b |", "| --- | --- | --- |"),
    ]


def test_the_sweep_is_measured_on_one_split_only(tmp_path):
    swept = {job.split for job in jobs_of(tmp_path, ["glyphs"], [0]) if "weight" in job.part}
    assert swept == {"open-class"}
    assert len([j for j in jobs_of(tmp_path, ["glyphs/open-class"], [0]) if "weight" in j.part]) == 6
    with pytest.raises(UsageError, match="no arm 'bict weight 1'"):
        jobs_of(tmp_path, ["glyphs/extended-data/bict weight 1"], [0])


def test_small_and_negative_numbers_are_written_plainly():
    assert [table.cell(figure(v)) for v in (-0.0214, 1.25, -0.0001, 0.0)] == [
        "−.021",
        "1.250",
        ".000",
        ".000",
    ]


def test_the_csv_has_a_line_a_figure_and_an_empty_field_for_what_is_undefined(tmp_path):
    write_csv(tmp_path / "m.csv", [figure(0.6, 0.7), figure(None, 0.5, metric="area", order="sigma")])
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert [row["mean"] for row in rows] == ["0.65000", ""]
    assert rows[1]["seed_1"] == "0.50000"


@pytest.fixture
def everything(tmp_path):
    return jobs_of(tmp_path, (), [0, 1])


def test_every_job_stands_behind_what_it_needs(everything):
    assert len(set(everything)) == len(everything)
    seen = set()
    for job in everything:
        assert seen.issuperset(needs(job)), job
        seen.add(job)


def test_no_two_jobs_share_a_folder(everything):
    assert len({job.folder for job in everything}) == len(everything)


def test_one_arm_brings_the_model_without_a_compatibility_term_along(tmp_path):
    jobs = jobs_of(tmp_path, ["glyphs/open-class/ract"], [0])
    assert [job.part for job in jobs] == [
        "old",
        "encoder-independent",
        "encoder-ract",
        "arm-independent",
        "arm-ract",
    ]


@pytest.mark.parametrize("part", ["digits", "glyphs/half", "glyphs/open-class/magic", "verses/open-class"])
def test_a_part_that_does_not_exist_is_a_usage_error_that_names_what_does(tmp_path, part):
    with pytest.raises(UsageError, match="choose one of"):
        jobs_of(tmp_path, [part], [0])


def test_a_job_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    job = Job(tmp_path, "glyphs", "open-class", 0, "old")
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text('{"seconds": 12.5}')
    monkeypatch.setattr(picture_jobs, "do", lambda job: pytest.fail("done twice"))
    assert work(job) == 12.5


def test_what_an_interrupted_job_left_is_thrown_away(tmp_path, monkeypatch):
    job = Job(tmp_path, "glyphs", "open-class", 0, "old")
    job.folder.mkdir(parents=True)
    (job.folder / "half.npy").write_bytes(b"half")
    monkeypatch.setattr(picture_jobs, "do", lambda job: {"pictures": 3})
    work(job)
    assert [path.name for path in job.folder.iterdir()] == ["result.json"]
    assert result_of(job)["pictures"] == 3


def test_relevance_is_equal_class():
    found = relevance_of(["b", "c", "x"], ["a", "b", "c", "b"])
    assert [found.of(query).tolist() for query in range(3)] == [[1, 3], [2], []]
