"""The report says what was measured, escapes what people named, and never shows a missing figure as a number."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.demo import plots
from orchestrator.demo import report as report_module
from orchestrator.demo.plot_text import spaced, visible
from orchestrator.demo.plots import COLOURS, panels, png, svg
from orchestrator.demo.report import render, summary, write_report
from orchestrator.demo.report_data import (
    METHOD_TITLES,
    Answer,
    Certificate,
    Flip,
    KilledWorker,
    Machine,
    MethodRun,
    NotRun,
    Point,
    Rollout,
    SeedRun,
    Stage,
    TimelineEvent,
)
from orchestrator.demo.report_summary import over_seeds, promises
from orchestrator.errors import StoreFullError, UsageError
from tests.unit.demo.made_up_report import (
    curve_of,
    made_up,
    made_up_flips,
    made_up_rollout,
    made_up_text,
    seed_run,
    with_upgrade,
)

NASTY = "<script>alert(\"1\")</script> & 'x' $\\frac$"
SECTIONS = ["headline", "certificates", "curves", "flips", "worst", "rollout", "text", "measured"]


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "path", "line", "use", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open and "span" not in self.open:
            self.headings.append(data.strip())
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u202f", " "))


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up())


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawings out where only words are looked at: they take most of the time."""
    monkeypatch.setattr(plots, "svg", lambda panel: "<svg></svg>")
    monkeypatch.setattr(plots, "png_files", lambda drawn: {"flips.png": b""})


def test_the_summary_has_exactly_the_promised_keys() -> None:
    document = summary(made_up())
    assert set(document) == {
        "schema_version", "certified_upgrade", "metrics", "independent", "first_answer_s", "throughput_per_s",
        "adapter_rate_per_s", "killed_worker", "items", "classes", "queries", "seconds", "seeds", "promises", "text",
        "machine", "versions", "not_run",
    }  # fmt: skip
    assert set(document["metrics"]) == {"old_old", *METHOD_TITLES}
    for name in METHOD_TITLES:
        assert set(document["metrics"][name]) == {
            "certified", "new_old", "new_new", "curve", "nfr_curve", "area", "area_random", "normalised_area",
        }  # fmt: skip


def test_the_summary_holds_the_values_of_the_rolled_out_seed() -> None:
    data = made_up()
    document = summary(data)
    ours = document["metrics"]["ract_adapter"]
    assert document["metrics"]["old_old"] == 0.712
    assert (ours["new_old"], ours["new_new"]) == (0.727, 0.838)
    assert ours["curve"] == [{"coverage": p.coverage, "value": p.value} for p in data.upgrade.curve]
    assert ours["area"] > ours["area_random"]
    assert document["independent"] == {"certified": False}
    assert document["certified_upgrade"] == "ract_adapter"
    assert document["killed_worker"] == {"lost": 0, "duplicated": 0}
    assert (document["items"], document["classes"], document["seconds"]) == (21_760, 2_519, 318.0)
    assert document["first_answer_s"] == 0.84
    assert document["machine"]["cores"] == 2


def test_the_summary_has_every_seed_with_mean_and_spread() -> None:
    seeds = summary(made_up())["seeds"]
    old = [run["metrics"]["old_old"] for run in seeds["runs"]]
    assert [run["seed"] for run in seeds["runs"]] == [0, 1, 2]
    assert seeds["mean"]["old_old"] == pytest.approx(sum(old) / 3)
    assert seeds["spread"]["old_old"] == pytest.approx(statistics.stdev(old))
    assert seeds["mean"]["bct"]["new_old"] == pytest.approx(0.629 + 0.002 / 3)


def test_what_did_not_run_is_null_with_its_reason_in_the_summary() -> None:
    killed = dataclasses.replace(
        made_up_rollout(), first_answer_s=NotRun("too early"), killed_worker=NotRun("no kill")
    )
    data = made_up(
        text=NotRun("the extra text is missing"),
        rollout=killed,
        seeds=(seed_run(0),),
        fewer_seeds_reason="--fast runs one seed",
    )
    document = summary(data)
    assert document["text"] is None
    assert document["first_answer_s"] is None
    assert document["killed_worker"] == {"lost": None, "duplicated": None}
    assert document["seeds"]["spread"]["old_old"] is None
    assert document["seeds"]["reason"] == "--fast runs one seed"
    reasons = document["not_run"]
    assert reasons["text"] == "the extra text is missing"
    assert reasons["killed_worker.lost"] == "no kill"
    assert reasons["seeds.spread.old_old"] == "one seed has no spread"
    json.dumps(document, allow_nan=False)


def test_promises_are_kept_broken_or_unknown_as_measured() -> None:
    assert [promise.holds for promise in promises(made_up())] == [True] * 4
    sinking = with_upgrade(made_up(), curve=curve_of(0.70, 0.838, 0.8))
    assert {promise.key: promise.holds for promise in promises(sinking)} == {
        "starts_no_worse": True, "never_below": False, "order_pays": True, "fewer_negative_flips": True,
    }  # fmt: skip
    unmeasured = with_upgrade(made_up(), area_random=NotRun("skipped"))
    assert promises(unmeasured)[2].holds is None


def test_equal_recall_keeps_the_promise_and_an_equal_area_does_not() -> None:
    level = with_upgrade(made_up(), new_old=0.712, area=0.8, area_random=0.8)
    kept = {promise.key: promise.holds for promise in promises(level)}
    assert kept["starts_no_worse"] is True
    assert kept["order_pays"] is False


def test_one_missing_seed_makes_the_mean_missing() -> None:
    assert over_seeds([0.5, NotRun("died")]).mean == NotRun("died")


def test_the_page_tells_the_story_in_order(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    sections = [identifier for identifier in parsed.ids if identifier in SECTIONS]
    assert sections == SECTIONS
    assert parsed.headings == [
        "Which models may be mixed", "What users see while the gallery is refreshed",
        "Answers that turned wrong, and right", "The worst flips of the rollout",
        "The rollout, second by second", "The same for texts", "How it was measured",
    ]  # fmt: skip
    assert page.startswith("<!doctype html>")
    assert parsed.tags.count("h1") == 1
    assert parsed.tags.count("figure") == 7


def test_the_headline_shows_mean_and_spread(page: str) -> None:
    text = Page(page).text
    assert "72.8 % ± 0.5" in text
    assert "old system 71.3 % ± 0.5" in text
    assert "0 lost 0 duplicated" in text
    assert "0.84 s" in text
    assert "812 items/s" in text


@pytest.mark.usefixtures("_undrawn")
def test_a_broken_promise_is_said_in_the_headline() -> None:
    text = Page(render(with_upgrade(made_up(), curve=curve_of(0.70, 0.838, 0.8)))).text
    assert "3 of 4 promises were kept." in text
    assert "✕ broken" in text
    assert "never worse than before" not in text


@pytest.mark.usefixtures("_undrawn")
def test_lost_items_are_said_before_everything_else() -> None:
    killed = KilledWorker(lost=3, duplicated=1, killed_s=13.4)
    text = Page(render(made_up(rollout=dataclasses.replace(made_up_rollout(), killed_worker=killed)))).text
    assert "3 items were lost and 1 duplicated" in text
    assert "never worse than before" not in text


def test_the_page_loads_nothing_from_anywhere() -> None:
    picture = Image.new("L", (32, 32), 200)
    html = render(made_up(flips=made_up_flips(picture)))
    parsed = Page(html)
    links = [
        (name, value)
        for _, name, value in parsed.attributes
        if name in {"src", "href", "xlink:href", "srcset"}
    ]
    assert links
    assert all(value.startswith(("#", "data:image/png;base64,")) for _, value in links)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_ids_are_unique_but_for_equal_drawings(page: str) -> None:
    without_drawings = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    identifiers = re.findall(r'\bid="([^"]*)"', without_drawings)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.usefixtures("_undrawn")
def test_text_from_outside_is_escaped_everywhere() -> None:
    answer = Answer(NASTY, NASTY, 0.5, NASTY, False)
    data = made_up(
        gallery=NASTY,
        flips=(Flip(NASTY, NASTY, None, answer, answer, 0.1, 0.2, cause=NASTY),),
        certificates=(Certificate(NASTY, NASTY, NASTY, 0.7, NotRun(NASTY), 0.8, "refused", NASTY),),
        text=dataclasses.replace(made_up_text(), gallery=NASTY, old_model=NASTY, new_model=NASTY),
        machine=Machine(NASTY, 2, 2**30, NASTY, NASTY),
        versions=((NASTY, NASTY),),
        stages=(Stage(NASTY, 1.0),),
        simulated=(NASTY,),
        real=(NASTY,),
        falls_short=(NASTY,),
        settings=((NASTY, NASTY),),
        started_at=NASTY,
        rollout=dataclasses.replace(made_up_rollout(), events=(TimelineEvent(1.0, NASTY),)),
    )
    html = render(data)
    parsed = Page(html)
    assert "script" not in parsed.tags
    assert "<script" not in html
    assert parsed.text.count("<script>alert(\"1\")</script> & 'x'") >= 20
    assert parsed.open == []


@pytest.mark.usefixtures("_undrawn")
def test_control_characters_and_direction_overrides_are_made_visible() -> None:
    hostile = "a\x00b\x1b[31m\u202egpj.exe\ud800\x85"
    assert visible(hostile) == "a␀b␛[31m⟨U+202E⟩gpj.exe⟨U+D800⟩⟨U+0085⟩"
    html = render(made_up(gallery=hostile))
    html.encode()
    assert not re.search("[\x00\x1b\u202e\x85]", html)


@pytest.mark.usefixtures("_undrawn")
def test_text_from_right_to_left_stays_and_is_isolated() -> None:
    hebrew = "שלום עולם"
    answer = Answer("k", hebrew, 0.5, "old", True)
    html = render(made_up(flips=(Flip("k", hebrew, None, answer, answer, 0.1, None),)))
    assert html.count(f"<bdi>{hebrew}</bdi>") == 3


@pytest.mark.usefixtures("_undrawn")
def test_missing_figures_are_shown_as_not_run_with_their_reason() -> None:
    why = NotRun("no worker <here>")
    rollout = dataclasses.replace(
        made_up_rollout(),
        first_answer_s=why,
        throughput_per_s=why,
        killed_worker=why,
        throughput=(),
        progress=(),
    )
    data = with_upgrade(
        made_up(rollout=rollout, text=NotRun("the extra text is missing")), map_curve=NotRun("no mAP")
    )
    text = Page(render(data)).text
    assert text.count("not run: no worker <here>") == 3
    assert "The worker was not killed: no worker <here>." in text
    assert "not run: the extra text is missing" in text
    assert "not run: no mAP" in text
    assert "None" not in text
    assert "NotRun" not in text


def test_a_report_in_which_nearly_nothing_ran_is_still_a_page(tmp_path: Path) -> None:
    why = NotRun("interrupted")
    methods = tuple(
        MethodRun(name, False, why, why, why, why, why, why, why, why, why, why, why, why, why)
        for name in METHOD_TITLES
    )
    data = made_up(
        seeds=(SeedRun(0, 0.7, methods),),
        fewer_seeds_reason="interrupted",
        rollout=Rollout(why, why, why, why, (), (), ()),
        flips=(),
        certificates=(),
        text=why,
        stages=(),
        versions=(),
    )
    write_report(data, tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "0 of 4 promises were kept" in text
    assert "No query that the old system answered right" in text


@pytest.mark.usefixtures("_undrawn")
def test_pictures_are_inlined_small() -> None:
    target = io.BytesIO()
    Image.new("RGBA", (900, 300), (10, 20, 30, 255)).save(target, "PNG")
    html = render(made_up(flips=made_up_flips(target.getvalue())))
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(sources) == 5
    assert all(len(source) < 4_000 for source in sources)


@pytest.mark.usefixtures("_undrawn")
def test_the_most_confident_mistakes_come_first_and_no_more_than_eight() -> None:
    flip = made_up_flips()[0]
    scores = [0.1 + place / 20 for place in range(12)]
    flips = tuple(
        dataclasses.replace(flip, new=dataclasses.replace(flip.new, score=score)) for score in scores
    )
    text = Page(render(made_up(flips=flips))).text
    shown = re.findall(r"score (0\.\d{3}) · old@v1, adapted", text)
    assert shown == [f"{score:.3f}" for score in sorted(scores, reverse=True)[:8]]
    assert "8 of 12" in text


@pytest.mark.usefixtures("_undrawn")
def test_bytes_that_are_no_png_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a PNG"):
        render(made_up(flips=made_up_flips(b"GIF89a")))


def test_drawings_use_the_colours_of_the_page() -> None:
    for panel in panels(made_up()).values():
        drawing = svg(panel)
        assert drawing.startswith("<svg")
        assert "var(--plot-upgrade, " + COLOURS["upgrade"] in drawing
        bare = re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", drawing)
        assert not re.search(r"#[0-9a-f]{6}\b", bare)


def test_the_dark_page_redefines_every_plot_colour(page: str) -> None:
    dark = page[page.index("prefers-color-scheme: dark") : page.index("*, *::before")]
    assert set(re.findall(r"--plot-(\w+):", dark)) == set(COLOURS)


def test_the_kill_is_marked_in_the_timeline() -> None:
    drawing = svg(panels(made_up())["throughput"])
    assert "kill −9, 4.2 s without a worker" in drawing


def test_pngs_are_wide_enough_to_be_read() -> None:
    drawn = panels(made_up())
    for chosen in (("recall", "map"), ("text",)):
        image = Image.open(io.BytesIO(png([drawn[name] for name in chosen])))
        assert image.width == 1400
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50


def test_the_same_data_give_the_same_page(page: str) -> None:
    assert render(made_up()) == page


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    paths = write_report(made_up(), tmp_path / "new" / "folder")
    assert {path.name for path in paths} == {
        "report.html", "summary.json", "refresh_curve.png", "flips.png", "rollout.png", "text_curve.png",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)
    assert json.loads((tmp_path / "new" / "folder" / "summary.json").read_text()) == summary(made_up())


@pytest.mark.usefixtures("_undrawn")
def test_a_report_that_cannot_be_rendered_leaves_the_previous_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("previous")
    (tmp_path / "summary.json").write_text("previous")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(made_up(seconds=float("nan")), tmp_path)
    with pytest.raises(ValueError, match="must be a PNG"):
        write_report(made_up(flips=made_up_flips(b"no")), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "report.html": "previous", "summary.json": "previous",
    }  # fmt: skip


@pytest.mark.usefixtures("_undrawn")
def test_a_full_disk_and_a_folder_that_is_a_file_are_one_clear_error_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="choose another folder"):
        write_report(made_up(), tmp_path / "file")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_module.os, "fsync", full)
    with pytest.raises(StoreFullError, match="free some space"):
        write_report(made_up(), tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_the_input_refuses_what_would_make_a_lying_report() -> None:
    with pytest.raises(ValueError, match="finite"):
        Point(0.5, float("nan"))
    with pytest.raises(ValueError, match="empty curve"):
        dataclasses.replace(made_up().upgrade, curve=())
    with pytest.raises(ValueError, match="fewer_seeds_reason"):
        made_up(seeds=(seed_run(0),))
    with pytest.raises(ValueError, match="needs the methods"):
        SeedRun(0, 0.7, ())
    with pytest.raises(ValueError, match="unknown verdict"):
        dataclasses.replace(made_up().certificates[0], verdict="maybe")


def test_labels_that_would_overlap_are_moved_apart_in_their_order() -> None:
    assert spaced([5.0, 1.0], 2.0) == [5.0, 1.0]
    moved = spaced([1.0, 1.1, 1.2, 9.0], 1.0)
    assert moved == pytest.approx([0.1, 1.1, 2.1, 9.0])


def test_importing_the_report_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, orchestrator.demo.report, orchestrator.demo.plots, cli\n"
        "heavy = {'matplotlib', 'torch', 'faiss', 'jinja2', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
