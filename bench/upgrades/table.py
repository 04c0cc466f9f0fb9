"""The figures as Markdown: a table a split with the arms beside each other, and one of the orders."""

from __future__ import annotations

from collections.abc import Sequence

from bench.upgrades.summary import Figure

ORDER = "entropy"
"""The order of the main table: the platform's default."""

LABELLED = "class_distance (labelled)"
"""The order that gains most where the gallery has labels."""

_COLUMNS = (
    ("M(new,old)", "", "new_old"),
    ("M(new,new)", "", "new_new"),
    ("tax", "", "tax"),
    ("update gain", "", "update_gain"),
    ("lowest − M(old,old)", ORDER, "lowest_over_old"),
    ("area", ORDER, "area"),
    ("area, 22 states", ORDER, "area_22_states"),
    ("area, random", "random", "area"),
    ("90 % of the gain at", ORDER, "coverage_90"),
    ("the same, random", "random", "coverage_90"),
    ("NFR mean", ORDER, "mean_nfr"),
    ("NFR max", ORDER, "max_nfr"),
    ("NFR to the stage before, mean", ORDER, "mean_nfr_previous"),
    ("the same, max", ORDER, "max_nfr_previous"),
)


_CHAIN = ("v3_v1", "v3_v2", "v3_mixed", "v3_v3", "v2_v1", "v2_v2", "v1_v1")


class Figures:
    """Figures by where they belong."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._by_key = {(f.data, f.split, f.arm, f.order, f.metric): f for f in figures}
        self.splits = list(dict.fromkeys((f.data, f.split) for f in figures))

    def arms(self, data: str, split: str) -> list[str]:
        """The measured arms, in the order of the table."""
        return list(dict.fromkeys(key[2] for key in self._by_key if key[:2] == (data, split)))

    def orders(self, data: str, split: str) -> list[str]:
        """The measured orders."""
        return list(dict.fromkeys(key[3] for key in self._by_key if key[:2] == (data, split) and key[3]))

    def get(self, data: str, split: str, arm: str, order: str, metric: str) -> Figure | None:
        """One figure; None where it was not measured."""
        return self._by_key.get((data, split, arm, order, metric))


def markdown(figures: Sequence[Figure]) -> str:
    """Every split's two tables. "mean ± half width of the 95 % interval"; "–": not measured, or undefined in some seed."""
    found = Figures(figures)
    parts = ["### All splits", overview(figures)]
    for data, split in found.splits:
        if any(
            figure.metric == _CHAIN[0] for figure in figures if (figure.data, figure.split) == (data, split)
        ):
            parts += [f"### {data}, {split}", _chains(found, data, split)]
            continue
        parts += [f"### {data}, {split}", _baseline(found, data, split), _arms(found, data, split)]
        if found.orders(data, split):
            parts += [
                "Area under the refresh curve by order (trapezoid, normalised):",
                _orders(found, data, split, "area"),
                "Share of the gallery re-embedded when 90 % of the gain is reached, by order:",
                _orders(found, data, split, "coverage_90"),
                "Calibrated scores, raw → calibrated, each query judged by a map fitted without it:",
                _calibrated(found, data, split),
            ]
            if any(found.get(data, split, arm, "", "guard_raw_nfr") for arm in found.arms(data, split)):
                parts += [
                    "Guard, mixed states of random orders, each query judged by a band fitted without it:",
                    _guarded(found, data, split),
                ]
    return "\n\n".join(parts) + "\n"


_OVERVIEW = (
    ("Lowest point along the refresh minus M(old,old)", ORDER, "lowest_over_old"),
    ("Mean NFR along the refresh", ORDER, "mean_nfr"),
    ("Share of the gallery re-embedded when 90 % of the gain is reached", LABELLED, "coverage_90"),
)


def overview(figures: Sequence[Figure]) -> str:
    """All splits beside each other: is a path safe, whom does it hurt, how soon does it pay."""
    found = Figures(figures)
    splits = [each for each in found.splits if found.orders(*each)]
    arms = list(dict.fromkeys(arm for each in splits for arm in found.arms(*each)))
    parts = []
    for title, order, metric in _OVERVIEW:
        rows = [
            [arm, *(cell(found.get(*each, arm, order, metric)) for each in splits)]
            for arm in arms
            if any(found.get(*each, arm, order, metric) is not None for each in splits)
        ]
        parts += [f"{title}, {order} order:", table(["arm", *(" ".join(each) for each in splits)], rows)]
    return "\n\n".join(parts)


def _baseline(found: Figures, data: str, split: str) -> str:
    old = next((found.get(data, split, arm, "", "old_old") for arm in found.arms(data, split)), None)
    return f"M(old,old) = {cell(old)}. NFR and areas in the {ORDER} order unless said."


def _arms(found: Figures, data: str, split: str) -> str:
    rows = [
        [arm, *(cell(found.get(data, split, arm, order, metric)) for _, order, metric in _COLUMNS)]
        for arm in found.arms(data, split)
    ]
    return table(["arm", *(title for title, *_ in _COLUMNS)], rows)


def _chains(found: Figures, data: str, split: str) -> str:
    rows = [
        [arm, *(cell(found.get(data, split, arm, "", metric)) for metric in _CHAIN)]
        for arm in found.arms(data, split)
    ]
    return table(["chain", *(f"M({metric.replace('_', ',')})" for metric in _CHAIN)], rows)


_CALIBRATED = (
    ("mean NFR", "mean_nfr"),
    ("lowest − M(old,old)", "lowest_over_old"),
    ("area", "area"),
)


def _calibrated(found: Figures, data: str, split: str) -> str:
    """Both orders that the calibrations were judged in, and of how many seeds a certificate would take them."""
    columns = [(order, *each) for order in (ORDER, "random") for each in _CALIBRATED]
    rows = []
    for arm in found.arms(data, split):
        pays = found.get(data, split, arm, "", "calibration_pays")
        if pays is None:
            continue
        cells = [
            f"{cell(found.get(data, split, arm, order, metric))} → "
            f"{cell(found.get(data, split, arm, order, f'calibrated_{metric}'))}"
            for order, _, metric in columns
        ]
        rows.append([arm, f"{sum(pays.known):.0f} of {len(pays.values)}", *cells])
    return table(["arm", "on, seeds", *(f"{title}, {order}" for order, title, _ in columns)], rows)


_GUARDED = (
    ("searches guarded", "share"),
    ("of the flips covered", "covered"),
    ("mean NFR without", "nfr_before"),
    ("with", "nfr"),
    ("recall without", "recall_before"),
    ("with guard", "recall"),
)


def _guarded(found: Figures, data: str, split: str) -> str:
    rows = [
        [arm, scores]
        + [cell(found.get(data, split, arm, "", f"guard_{scores}_{metric}")) for _, metric in _GUARDED]
        for arm in found.arms(data, split)
        for scores in ("raw", "calibrated")
        if found.get(data, split, arm, "", f"guard_{scores}_nfr") is not None
    ]
    return table(["arm", "scores", *(title for title, _ in _GUARDED)], rows)


def _orders(found: Figures, data: str, split: str, metric: str) -> str:
    orders = found.orders(data, split)
    rows = [
        [arm, *(cell(found.get(data, split, arm, order, metric)) for order in orders)]
        for arm in found.arms(data, split)
        if found.get(data, split, arm, "random", metric) is not None
    ]
    return table(["arm", *orders], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(figure: Figure | None) -> str:
    """.613 ± .021"""
    if figure is None or figure.mean is None:
        return "–"
    if figure.half_width is None:
        return _short(figure.mean)
    return f"{_short(figure.mean)} ± {_short(figure.half_width)}"


def _short(number: float) -> str:
    """.613, −.021, 1.204"""
    text = f"{abs(number):.3f}"
    return ("−" if number < -0.0005 else "") + (text[1:] if text.startswith("0") else text)
