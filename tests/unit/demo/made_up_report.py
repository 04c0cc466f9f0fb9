"""Made-up figures for tests of the report: none of them was measured."""

from __future__ import annotations

import dataclasses

from PIL import Image

from orchestrator.demo.report_data import (
    Answer,
    Certificate,
    Curve,
    Flip,
    KilledWorker,
    Machine,
    MethodRun,
    NotRun,
    Point,
    ReportData,
    Rollout,
    SeedRun,
    Stage,
    TextStory,
    TimelineEvent,
)

COVERAGES = tuple(state / 10 for state in range(11))


def curve_of(start: float, end: float, power: float) -> Curve:
    """A made-up curve: falls or rises from start to end, early for a power below 1."""
    return tuple(Point(coverage, start + (end - start) * coverage**power) for coverage in COVERAGES)


def bump(start: float, top: float, end: float) -> Curve:
    """A made-up curve of flips: from start over about top to end."""
    return tuple(Point(b, start * (1 - b) + end * b + 4 * top * b * (1 - b)) for b in COVERAGES)


def area_of(curve: Curve) -> float:
    values = [point.value for point in curve]
    return (sum(values) - (values[0] + values[-1]) / 2) / (len(values) - 1)


def method(name: str, new_old: float, new_new: float, old_old: float, **more: object) -> MethodRun:
    ours = name == "ract_adapter"
    curve, random = curve_of(new_old, new_new, 0.8 if ours else 1.3), curve_of(new_old, new_new, 1.5)
    lost = max(old_old - new_old, 0.0)
    nfr = bump(0.034, -0.001, 0.019) if ours else bump(lost + 0.05, 0.004, 0.022)
    extras: dict[str, object] = {}
    if ours:
        extras = {
            "map_curve": curve_of(new_old - 0.1, new_new - 0.08, 0.8),
            "random_curve": random,
            "random_map_curve": curve_of(new_old - 0.1, new_new - 0.08, 1.5),
            "oracle_curve": curve_of(new_old, new_new, 0.65),
            "oracle_map_curve": curve_of(new_old - 0.1, new_new - 0.08, 0.65),
        }
    return MethodRun(
        name=name,
        certified=ours,
        new_old=new_old,
        new_new=new_new,
        curve=curve,
        nfr_curve=nfr,
        pfr_curve=tuple(
            Point(p.coverage, p.value + q.value - old_old) for p, q in zip(nfr, curve, strict=True)
        ),
        area=area_of(curve),
        area_random=area_of(random),
        normalised_area=(area_of(curve) - old_old) / (new_new - old_old),
        **{**extras, **more},
    )


def seed_run(seed: int, shift: float = 0.0) -> SeedRun:
    old = 0.712 + shift
    return SeedRun(
        seed=seed,
        old_old=old,
        old_old_map=0.604 + shift,
        methods=(
            method("independent", 0.001, 0.853, old),
            method("bct", 0.629 + shift, 0.816, old),
            method("ract", 0.590 + shift, 0.824, old),
            method("ract_adapter", 0.727 + shift, 0.838 + shift, old),
        ),
    )


def made_up_rollout() -> Rollout:
    rates = [(float(t), 0.0 if t == 0 or 14 <= t < 18 else 780.0 + 35 * ((7 * t) % 5)) for t in range(31)]
    done = [(t, min(1.0, sum(rate for at, rate in rates if at <= t) / 21_800)) for t, _ in rates]
    return Rollout(
        first_answer_s=0.84,
        throughput_per_s=812.0,
        adapter_rate_per_s=512_000.0,
        killed_worker=KilledWorker(lost=0, duplicated=0, killed_s=13.4, resumed_s=17.6),
        throughput=tuple(rates),
        progress=tuple(done),
        events=(
            TimelineEvent(0.0, "rollout start accepted: certificate checked"),
            TimelineEvent(0.84, "first answer of the new model"),
            TimelineEvent(13.4, "worker killed with SIGKILL while it held batch 41", mark=True),
            TimelineEvent(17.6, "lease expired, batch 41 claimed again by a new worker"),
            TimelineEvent(30.2, "all batches committed: finalizable"),
            TimelineEvent(30.6, "finalized"),
        ),
        measured=tuple(Point(b, 0.7275 + 0.1105 * b**0.8) for b in (0.0, 0.2, 0.5, 0.8, 1.0)),
        measured_nfr=tuple(Point(b, 0.034 - 0.015 * b) for b in (0.0, 0.2, 0.5, 0.8, 1.0)),
        measured_pfr=tuple(Point(b, 0.0495 + 0.0955 * b**0.8) for b in (0.0, 0.2, 0.5, 0.8, 1.0)),
    )


def made_up_flips(picture: Image.Image | bytes | None = None) -> tuple[Flip, ...]:
    right = Answer("glyph:0041/serif", "U+0041", 0.913, "old@v1", True, picture)
    wrong = Answer("glyph:0410/serif", "U+0410", 0.931, "old@v1, adapted", False, picture)
    return (
        Flip("glyph:0041/unseen", "U+0041", picture, right, wrong, 0.0, 0.62, 21.4, "a rival overtook it"),
        Flip("glyph:0042/unseen", None, None, right, wrong, 0.3, None),
    )


def made_up_text() -> TextStory:
    return TextStory(
        gallery="verses: two translations",
        old_model="wordllama 64-d",
        new_model="wordllama 256-d",
        items=31_102,
        queries=1_000,
        old_old=0.523,
        new_old_without_adapter=NotRun("64 and 256 dimensions cannot be compared"),
        new_old=0.541,
        new_new=0.668,
        certified=True,
        curve=curve_of(0.541, 0.668, 0.85),
        random_curve=curve_of(0.541, 0.668, 1.3),
        nfr_curve=bump(0.05, 0.0, 0.03),
        seconds=14.2,
    )


def made_up(**changes: object) -> ReportData:
    """A report with made-up figures: none of them was measured."""
    data = ReportData(
        gallery="glyphs (made-up figures)",
        items=21_760,
        classes=2_519,
        queries=680,
        seconds=318.0,
        seeds=(seed_run(0), seed_run(1, 0.006), seed_run(2, -0.004)),
        certificates=(
            Certificate(
                "Independent", "new-independent", "old", 0.712, 0.001, 0.853, "refused", "Strangers."
            ),
            Certificate(
                "RACT + adapter", "new-ract", "old, adapted", 0.712, 0.727, 0.838, "certified", "Fits."
            ),
        ),
        rollout=made_up_rollout(),
        flips=made_up_flips(),
        text=made_up_text(),
        machine=Machine("Example CPU", 2, 8 * 2**30, "Linux", "3.11.2"),
        versions=(("hotrefresh", "0.1.0"), ("torch", "2.13.0")),
        stages=(Stage("train", 120.0), Stage("refresh", 30.6)),
        simulated=("Curves by order.",),
        real=("The rollout.",),
        falls_short=("The oracle needs what no rollout has.",),
        settings=(("batch", "256 items"),),
    )
    return dataclasses.replace(data, **changes)


def with_upgrade(data: ReportData, **changes: object) -> ReportData:
    """The report with another certified upgrade on its first seed."""
    first = data.first
    methods = (*first.methods[:3], dataclasses.replace(first.methods[3], **changes))
    return dataclasses.replace(data, seeds=(dataclasses.replace(first, methods=methods), *data.seeds[1:]))
