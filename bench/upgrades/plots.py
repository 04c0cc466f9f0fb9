"""Refresh curves of every split as small multiples: recall at 1, and negative flips against the old system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.upgrades.job import Job, result_of
from bench.upgrades.table import ORDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Arm -> colour: one of each kind, so that a panel can be read; the table has them all.
SHOWN = {
    "independent": "#6b7682",
    "bct": "#b35309",
    "ract": "#a1307c",
    "unibct": "#7a6aa8",
    "dmu": "#1c7a52",
    "independent + procrustes": "#b8860b",
    "independent + low_rank": "#7b2d26",
    "independent + fct": "#0b8f9c",
    "independent + mlp": "#5aa02c",
    "ract + mlp": "#0a5fc2",
}
_MOST = 7
_PANEL = (3.9, 3.1)


def draw(folder: Path, jobs: Sequence[Job]) -> list[Path]:
    """<folder>/<data>-recall.png and <data>-flips.png of the measured jobs; their paths."""
    made = []
    jobs = [job for job in jobs if job.kind == "arm"]
    for data in dict.fromkeys(job.data for job in jobs):
        for metric, title in (
            ("recall", "recall at 1 of new queries"),
            ("nfr", "negative flips against the old system"),
        ):
            path = folder / f"{data}-{'flips' if metric == 'nfr' else metric}.png"
            _figure(path, [job for job in jobs if job.data == data], metric, f"{data}: {title}")
            made.append(path)
    return made


def _figure(path: Path, jobs: Sequence[Job], metric: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    splits = list(dict.fromkeys(job.split for job in jobs))
    columns = min(3, len(splits))
    lines = -(-len(splits) // columns)
    size = (max(7.8, _PANEL[0] * columns), _PANEL[1] * lines + 0.9)
    figure, grid = pyplot.subplots(lines, columns, figsize=size, sharex=True, squeeze=False)
    panels = list(grid.flat)
    arms = _shown(jobs)
    for panel, split in zip(panels, splits, strict=False):
        _panel(panel, [job for job in jobs if job.split == split], arms, metric)
        panel.set_title(split, loc="left", fontsize=10)
    for panel in panels[len(splits) :]:
        panel.set_axis_off()
    keys, labels = panels[0].get_legend_handles_labels()
    figure.suptitle(
        f"{title}\nsolid: {ORDER} order, dotted: random; mean over the seeds", x=0.02, ha="left", fontsize=11
    )
    figure.legend(keys, labels, loc="lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.supxlabel("share of the gallery re-embedded", fontsize=9, y=0.62 / size[1])
    figure.tight_layout(rect=(0, 0.72 / size[1], 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _shown(jobs: Sequence[Job]) -> list[str]:
    """At most seven of the arms: those that train a model where there are such, adapters where there are not."""
    there = [arm for arm in SHOWN if any(job.name == arm for job in jobs)]
    while len(there) > _MOST:
        there.remove(next(arm for arm in there if arm.startswith("independent + ")))
    return there


def _panel(axes: Axes, jobs: Sequence[Job], arms: Sequence[str], metric: str) -> None:
    for arm in arms:
        colour = SHOWN[arm]
        results = [result_of(job) for job in jobs if job.part == f"arm-{arm}"]
        if not results:
            continue
        for order, style in ((ORDER, "-"), ("random", ":")):
            curves = [curve for result in results for curve in result["orders"][order]]
            mean = np.mean([curve[metric] for curve in curves], axis=0)
            label = arm if order == ORDER else None
            axes.plot(curves[0]["coverage"], mean, style, color=colour, linewidth=1.6, label=label)
    if metric == "recall":
        old = [result_of(job)["old_old"] for job in jobs if job.part.startswith("arm-")]
        axes.axhline(float(np.mean(old)), color="#17212c", linewidth=0.9, linestyle="--", label="M(old,old)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
