"""The demo's report: one HTML file that needs nothing else, summary.json, and the plots as PNGs.

Everything is rendered before the first byte is written, and each file replaces its predecessor by a rename, so a report
that failed leaves the previous one whole.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.demo.plot_text import visible
from orchestrator.demo.report_data import Curve, Measured, NotRun, Picture, ReportData, mean_value
from orchestrator.demo.report_summary import Spread, over_seeds, promises, summary, upgrade_over_seeds
from orchestrator.errors import StoreFullError, UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"

_PICTURE_PIXELS = 192
_FLIPS_SHOWN = 8
_TABLE_COVERAGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NO_BREAK = "\u00a0"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_report(data: ReportData, folder: Path) -> tuple[Path, ...]:
    """Write report.html, summary.json and the PNGs into `folder` (made when missing); returns their paths.

    Raises StoreFullError when the disk is full, UsageError when the folder cannot be written, ValueError for a figure
    that is not a finite number.
    """
    from orchestrator.demo.plots import panels, png_files

    drawn = panels(data)
    document = json.dumps(summary(data), indent=2, allow_nan=False) + "\n"
    files = {
        **png_files(drawn),
        SUMMARY_FILE: document.encode(),
        REPORT_FILE: render(data).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(_replace(folder / name, content) for name, content in files.items())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreFullError(
                f"the disk is full: the report in {folder} was not written; free some space"
            ) from error
        raise UsageError(
            f"cannot write the report to {folder} ({error.strerror}): choose another folder"
        ) from error


def render(data: ReportData) -> str:
    """The whole page. Every string of `data` is escaped, and what acts instead of showing is made visible."""
    from orchestrator.demo.plots import COLOURS, panels, svg

    drawn = panels(data)
    drawings = {name: panel.not_run or svg(panel) for name, panel in drawn.items()}
    environment = _environment()
    return environment.get_template("report.html").render(
        data=data,
        first=data.first,
        upgrade=data.upgrade,
        rollout=data.rollout,
        killed=data.rollout.killed_worker,
        promises=promises(data),
        old_old=over_seeds([seed.old_old for seed in data.seeds]),
        new_old=upgrade_over_seeds(data, lambda run: run.new_old),
        new_new=upgrade_over_seeds(data, lambda run: run.new_new),
        margin=_margin(data),
        mean_nfr=upgrade_over_seeds(data, lambda run: run.mean_nfr),
        rivals_nfr={name: _mean_nfr(data, name) for name in ("bct", "ract")},
        sparkline=_sparkline(data),
        flips=sorted(data.flips, key=lambda flip: -flip.new.score)[:_FLIPS_SHOWN],
        panels=drawn,
        drawings=drawings,
        plot_colours=COLOURS,
        curve_table=_curve_table(data),
        flips_table=_flips_table(data),
        table_coverages=_TABLE_COVERAGES,
        longest_stage=max((stage.seconds for stage in data.stages), default=0.0),
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        points=_points,
        number=_number,
        seconds=_seconds,
        gib=_gib,
        spread=_spread,
        picture=_picture,
    )
    environment.tests["missing"] = lambda value: isinstance(value, NotRun)
    return environment


def _shown(value: Any) -> Any:
    """Of every value that a template prints: a missing figure says why, a text shows what it is."""
    from markupsafe import Markup

    if isinstance(value, NotRun):
        return Markup('<span class="not-run">not run: {}</span>').format(visible(value.reason))
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _format(value: Measured | None, form: str, factor: float = 1.0, unit: str = "") -> str | NotRun:
    if value is None or isinstance(value, NotRun):
        return value if isinstance(value, NotRun) else "–"
    return format(factor * value, form).replace("-", "−").replace(",", "\u202f") + (unit and _NO_BREAK + unit)


def _percent(value: Measured | None, digits: int = 1, unit: str = "%") -> str | NotRun:
    return _format(value, f".{digits}f", 100, unit)


def _points(value: Measured | None) -> str | NotRun:
    """A difference of ratios, with its sign."""
    return _format(value, "+.1f", 100)


def _number(value: Measured | None, digits: int = 0) -> str | NotRun:
    return _format(value, f",.{digits}f")


def _seconds(value: Measured | None) -> str | NotRun:
    if value is None or isinstance(value, NotRun):
        return _format(value, "")
    if value < 120:
        return _format(value, ".2f" if value < 1 else ".1f" if value < 60 else ".0f", unit="s")
    return f"{value // 60:.0f}{_NO_BREAK}min {value % 60:.0f}{_NO_BREAK}s"


def _gib(value: int) -> str | NotRun:
    return _format(value / 2**30, ".0f", unit="GiB")


def _spread(spread: Spread) -> str:
    """± of a mean in points, or nothing for a single seed."""
    return "" if isinstance(spread.deviation, NotRun) else f"±{_NO_BREAK}{100 * spread.deviation:.1f}"


def _margin(data: ReportData) -> Spread:
    """The lowest recall along the refresh minus the old system's, over seeds."""
    margins: list[Measured] = []
    for seed in data.seeds:
        lowest = seed.method(data.certified_upgrade).lowest
        margins.append(lowest if isinstance(lowest, NotRun) else lowest - seed.old_old)
    return over_seeds(margins)


def _mean_nfr(data: ReportData, name: str) -> Measured:
    return over_seeds([seed.method(name).mean_nfr for seed in data.seeds]).mean


def _sparkline(data: ReportData) -> dict[str, Any] | None:
    """Points of the refresh curve in a box of 100 by 30, and the height of the old system's line."""
    curve = data.upgrade.curve
    if isinstance(curve, NotRun):
        return None
    values = [point.value for point in curve] + [data.first.old_old]
    low, high = min(values), max(max(values), min(values) + 1e-6)

    def height(value: float) -> float:
        return round(27 - 24 * (value - low) / (high - low), 2)

    return {
        "points": " ".join(f"{100 * point.coverage:.2f},{height(point.value)}" for point in curve),
        "old": height(data.first.old_old),
    }


def _curve_table(data: ReportData) -> list[tuple[str, list[Measured]]]:
    """Recall of each order at a few coverages: the plot for those who cannot see it."""
    run = data.upgrade
    curves = {"entropy": run.curve, "random": run.random_curve, "oracle": run.oracle_curve}
    return [
        (name, _at(curve, _TABLE_COVERAGES))
        for name, curve in curves.items()
        if not isinstance(curve, NotRun)
    ]


def _flips_table(data: ReportData) -> list[dict[str, Any]]:
    """Both kinds of flips of each method at a few coverages, with the mean of the negative ones."""
    rows = []
    for name in dict.fromkeys(("bct", "ract", data.certified_upgrade)):
        run = data.first.method(name)
        if not isinstance(run.nfr_curve, NotRun):
            rows.append(
                {
                    "title": run.title,
                    "ours": name == data.certified_upgrade,
                    "values": _at(run.nfr_curve, _TABLE_COVERAGES),
                    "mean": mean_value(run.nfr_curve),
                    "mean_positive": mean_value(run.pfr_curve),
                }
            )
    return rows


def _at(curve: Curve, coverages: Sequence[float]) -> list[Measured]:
    """The curve at these coverages, linear between its points."""
    import numpy as np

    across, up = [point.coverage for point in curve], [point.value for point in curve]
    return [float(value) for value in np.interp(coverages, across, up)]


def _picture(picture: Picture) -> str | None:
    """A data URI of at most 192 pixels a side, None for no picture. Raises ValueError for bytes that are no PNG."""
    from PIL import Image

    if picture is None:
        return None
    if isinstance(picture, bytes):
        if not picture.startswith(_PNG_SIGNATURE):
            raise ValueError("a picture given as bytes must be a PNG")
        picture = Image.open(io.BytesIO(picture))
    small = picture.convert("L" if picture.mode in {"1", "L"} else "RGB")
    small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    target = io.BytesIO()
    small.save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def _replace(path: Path, content: bytes) -> Path:
    """Write beside the file, flush, rename over it: a reader sees the old file or the new one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


__all__ = ["REPORT_FILE", "SUMMARY_FILE", "render", "summary", "write_report"]
