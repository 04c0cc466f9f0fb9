"""What the demo measured, as plain values: the one input of the report and of summary.json.

Shares and rates are ratios in 0..1, durations are seconds, sizes bytes. What did not run is a `NotRun` with its reason,
never a zero and never an empty curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

METHOD_TITLES: dict[str, str] = {
    "independent": "Independent",
    "bct": "BCT",
    "ract": "RACT",
    "ract_adapter": "RACT + adapter",
}
"""The demo's methods, in the order of the report."""

VERDICTS = ("certified", "refused", "inconclusive")


@dataclass(frozen=True)
class NotRun:
    """Stands where a figure would stand, had it been measured."""

    reason: str


@dataclass(frozen=True)
class Point:
    """One state of a refresh. Raises ValueError outside of 0..1 coverage and for a value that is not finite."""

    coverage: float
    value: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.coverage <= 1.0 or not math.isfinite(self.value):
            raise ValueError(
                f"a curve's point needs a coverage in 0..1 and a finite value, not ({self.coverage}, {self.value})"
            )


Measured: TypeAlias = float | NotRun
Curve: TypeAlias = tuple[Point, ...]
MeasuredCurve: TypeAlias = Curve | NotRun
Picture: TypeAlias = "Image.Image | bytes | None"
"""A PIL image, or the bytes of a PNG; None for an item without a picture."""

_ONLY_CERTIFIED = NotRun("simulated for the certified upgrade only")


@dataclass(frozen=True)
class MethodRun:
    """One way to train the new model, on one seed. Curves rise in coverage, in entropy order unless named otherwise.

    `new_old`: recall at 1 of the new model's queries against what is stored at 0 % coverage (adapted, where there is an
    adapter). `area`: trapezoid over coverage; `normalised_area` = (area - old_old) / (new_new - old_old).
    `nfr_curve` and `pfr_curve`: flips against the old system.
    """

    name: str
    certified: bool
    new_old: Measured
    new_new: Measured
    curve: MeasuredCurve
    nfr_curve: MeasuredCurve
    pfr_curve: MeasuredCurve
    area: Measured
    area_random: Measured
    normalised_area: Measured
    map_curve: MeasuredCurve = _ONLY_CERTIFIED
    random_curve: MeasuredCurve = _ONLY_CERTIFIED
    random_map_curve: MeasuredCurve = _ONLY_CERTIFIED
    oracle_curve: MeasuredCurve = _ONLY_CERTIFIED
    oracle_map_curve: MeasuredCurve = _ONLY_CERTIFIED

    def __post_init__(self) -> None:
        if self.name not in METHOD_TITLES:
            raise ValueError(f"unknown method {self.name!r}: the report knows {', '.join(METHOD_TITLES)}")
        for value in vars(self).values():
            if isinstance(value, tuple) and not value:
                raise ValueError(f"an empty curve of {self.name}: say why with NotRun")

    @property
    def title(self) -> str:
        """The method's name for people."""
        return METHOD_TITLES[self.name]

    @property
    def lowest(self) -> Measured:
        """The lowest recall at 1 along the refresh."""
        return self.curve if isinstance(self.curve, NotRun) else min(point.value for point in self.curve)

    @property
    def mean_nfr(self) -> Measured:
        """Mean of the negative flip rate over the states of the curve."""
        return mean_value(self.nfr_curve)


@dataclass(frozen=True)
class SeedRun:
    """Everything measured on one seed: all four methods, against the same old system."""

    seed: int
    old_old: float
    methods: tuple[MethodRun, ...]
    old_old_map: Measured = NotRun("mAP was not measured")

    def __post_init__(self) -> None:
        if [method.name for method in self.methods] != list(METHOD_TITLES):
            raise ValueError(f"seed {self.seed} needs the methods {', '.join(METHOD_TITLES)}, in this order")

    def method(self, name: str) -> MethodRun:
        """The run of a method by its name."""
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True)
class Certificate:
    """A measured pair of models and its verdict (certified, refused, inconclusive), as the ledger holds it.

    `upgrade` is the pair's name for people.
    """

    upgrade: str
    query_model: str
    gallery_model: str
    old_old: float
    new_old: Measured
    new_new: Measured
    verdict: str
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(
                f"unknown verdict {self.verdict!r} of {self.upgrade}: one of {', '.join(VERDICTS)}"
            )


@dataclass(frozen=True)
class Answer:
    """The first answer to a query: `version` names the embedding it was found by, `score` is the cosine."""

    key: str
    label: str | None
    score: float
    version: str
    right: bool
    picture: Picture = None


@dataclass(frozen=True)
class Flip:
    """A query answered right by the old system and wrong during the rollout.

    `opened_at` and `healed_at` are coverages; `healed_at` is None when the flip was still open at the end.
    """

    query_key: str
    query_label: str | None
    query_picture: Picture
    old: Answer
    new: Answer
    opened_at: float
    healed_at: float | None
    healed_after_s: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class KilledWorker:
    """What a worker killed with SIGKILL left behind, counted after the rollout had ended."""

    lost: int
    duplicated: int
    killed_s: float
    resumed_s: float | None = None


@dataclass(frozen=True)
class TimelineEvent:
    """Something that happened, in seconds since `rollout start`. `mark` draws it into the plots."""

    seconds: float
    text: str
    mark: bool = False


@dataclass(frozen=True)
class Rollout:
    """The real rollout, through PostgreSQL, Valkey and a worker process.

    `throughput`: (seconds since start, items per second); `progress`: (seconds since start, coverage 0..1).
    `measured*` are the exact figures that the evaluator took along the way.
    """

    first_answer_s: Measured
    throughput_per_s: Measured
    adapter_rate_per_s: Measured
    killed_worker: KilledWorker | NotRun
    throughput: tuple[tuple[float, float], ...]
    progress: tuple[tuple[float, float], ...]
    events: tuple[TimelineEvent, ...]
    measured: Curve = ()
    measured_map: Curve = ()
    measured_nfr: Curve = ()
    measured_pfr: Curve = ()


@dataclass(frozen=True)
class TextStory:
    """The same upgrade on texts, between two models that nobody trained together.

    `curve`: the real rollout's, NotRun where the certificate refused it; `random_curve`: simulated in a random order.
    """

    gallery: str
    old_model: str
    new_model: str
    items: int
    queries: int
    old_old: float
    new_old_without_adapter: Measured
    new_old: float
    new_new: float
    certified: bool
    curve: MeasuredCurve
    random_curve: MeasuredCurve
    nfr_curve: MeasuredCurve
    seconds: float


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str


@dataclass(frozen=True)
class Stage:
    """One step of the demo and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class ReportData:
    """All that the report says. The first of `seeds` is the one that was rolled out for real.

    `seeds_asked` and `fewer_seeds_reason` say why there are fewer seeds than promised. `simulated`, `real` and
    `falls_short` are sentences.
    """

    gallery: str
    items: int
    classes: int
    queries: int
    seconds: float
    seeds: tuple[SeedRun, ...]
    certificates: tuple[Certificate, ...]
    rollout: Rollout
    flips: tuple[Flip, ...]
    text: TextStory | NotRun
    machine: Machine
    versions: tuple[tuple[str, str], ...]
    stages: tuple[Stage, ...]
    simulated: tuple[str, ...]
    real: tuple[str, ...]
    falls_short: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    seeds_asked: int = 3
    fewer_seeds_reason: str | None = None
    certified_upgrade: str = "ract_adapter"
    started_at: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("a report needs at least one seed")
        if len(self.seeds) < self.seeds_asked and not self.fewer_seeds_reason:
            raise ValueError(
                f"{len(self.seeds)} of {self.seeds_asked} seeds ran: fewer_seeds_reason must say why"
            )
        if self.certified_upgrade not in METHOD_TITLES:
            raise ValueError(f"unknown certified upgrade {self.certified_upgrade!r}")

    @property
    def first(self) -> SeedRun:
        """The seed that was rolled out for real."""
        return self.seeds[0]

    @property
    def upgrade(self) -> MethodRun:
        """The certified upgrade on the first seed."""
        return self.first.method(self.certified_upgrade)


def mean_value(curve: MeasuredCurve) -> Measured:
    """Mean of a curve's values over its states."""
    return curve if isinstance(curve, NotRun) else sum(point.value for point in curve) / len(curve)
