"""The report's plots: each panel once as SVG that follows the page's colours, and composed into PNGs for everybody else.

A panel draws on any matplotlib axes. Its SVG keeps text as text and names colours by CSS variables, so one drawing fits
the light and the dark page; PNGs are light, 1,400 pixels wide, made to be read at half of that.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.demo.plot_text import spaced, visible
from orchestrator.demo.report_data import Curve, MeasuredCurve, MethodRun, NotRun, ReportData, TextStory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: dict[str, str] = {
    "ink": "#17212c",
    "muted": "#5a6674",
    "grid": "#e3e7ec",
    "card": "#fefefe",
    "upgrade": "#0a5fc2",
    "random": "#b35309",
    "oracle": "#7a6aa8",
    "bct": "#b4540a",
    "ract": "#a1307c",
    "old": "#6b7682",
    "new": "#1c7a52",
    "alarm": "#c3262f",
}
"""Light colours by role; on the page each is the CSS variable `--plot-<role>`, which the dark scheme redefines."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.9,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "ytick.left": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "lines.solid_capstyle": "round",
}
_SIZE = (5.2, 3.5)
_LABELS_BEHIND = 0.745
_NO_KEY = 0.97


@dataclass(frozen=True)
class Panel:
    """One plot: `description` says in words what is to be seen, `not_run` why there is nothing."""

    name: str
    title: str
    description: str
    draw: Callable[[Axes], None]
    not_run: NotRun | None = None
    right: float = 0.955
    top: float = 0.885
    """Where the axes end, as shares of the drawing: `right` leaves room for labels behind them, `top` for the key."""


def panels(data: ReportData) -> dict[str, Panel]:
    """All panels by name."""
    return {panel.name: panel for panel in (*_curves(data), *_flips(data), *_timeline(data), _text(data))}


def svg(panel: Panel) -> str:
    """The panel as an `<svg>` element for a page: no ids of groups, no metadata, colours as CSS variables."""
    with _styled({"svg.hashsalt": panel.name}):
        figure = _figure(_SIZE)
        axes = figure.subplots()
        panel.draw(axes)
        figure.subplots_adjust(left=0.11, right=panel.right, top=panel.top, bottom=0.145)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return _for_the_page(target.getvalue())


def png(chosen: Sequence[Panel], columns: int = 1) -> bytes:
    """Panels side by side or stacked, as one PNG, 1,400 pixels wide."""
    rows = -(-len(chosen) // columns)
    with _styled({}):
        figure = _figure((7.0, 3.1 * rows + 0.25 if columns == 1 else 3.3 * rows))
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, panel in zip(grid, chosen, strict=False):
            if panel.not_run is None:
                panel.draw(axes)
            else:
                _say_not_run(axes, panel.not_run)
            axes.set_title(panel.title, pad=8 if panel.top == _NO_KEY else 26)
        figure.tight_layout(pad=1.4, h_pad=2.2, w_pad=2.2)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=200, facecolor=COLOURS["card"], metadata={"Software": None})
    return target.getvalue()


def png_files(drawn: dict[str, Panel]) -> dict[str, bytes]:
    """The PNG files of a report by their names."""
    compositions = {
        "refresh_curve.png": ("recall", "map"),
        "flips.png": ("negative_flips", "positive_flips"),
        "rollout.png": ("throughput", "coverage"),
        "text_curve.png": ("text",),
    }
    return {name: png([drawn[panel] for panel in chosen]) for name, chosen in compositions.items()}


def _styled(more: dict[str, Any]) -> Any:
    import matplotlib as mpl

    settings: Any = {**_STYLE, **more}
    return mpl.rc_context(settings)


def _figure(size: tuple[float, float]) -> Figure:
    """A figure of its own: no pyplot, no display, no state shared with whoever imported us."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def _for_the_page(drawing: str) -> str:
    roles = {colour: role for role, colour in COLOURS.items()}
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    drawing = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing)
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = drawing.replace("'DejaVu Sans'", "var(--sans)")
    drawing = drawing.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)

    def named(match: re.Match[str]) -> str:
        role = roles.get(match.group(0))
        return f"var(--plot-{role}, {match.group(0)})" if role else match.group(0)

    return re.sub(r"#[0-9a-f]{6}\b", named, drawing)


def _say_not_run(axes: Axes, reason: NotRun) -> None:
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, f"not run: {visible(reason.reason)}", ha="center", va="center", color=COLOURS["muted"],
        wrap=True, transform=axes.transAxes,
    )  # fmt: skip


def _coverage_axis(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.set_xlabel("share of the gallery re-embedded")


def _percent_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.10g} %")


def _line(axes: Axes, curve: MeasuredCurve, colour: str, label: str, **style: Any) -> None:
    if not isinstance(curve, NotRun):
        across, up = _percent(curve)
        axes.plot(across, up, color=COLOURS[colour], label=label, **style)


def _dots(axes: Axes, curve: Curve) -> None:
    """What the real rollout measured, over the simulated line."""
    if curve:
        across, up = _percent(curve)
        axes.plot(
            across, up, "o", color=COLOURS["card"], markeredgecolor=COLOURS["ink"], markersize=4.6,
            markeredgewidth=1.3, label="real rollout", zorder=5, clip_on=False,
        )  # fmt: skip


def _percent(curve: Curve) -> tuple[list[float], list[float]]:
    return [100 * point.coverage for point in curve], [100 * point.value for point in curve]


def _key(axes: Axes) -> None:
    """One quiet row above the axes: lines that start and end together cannot be labelled at their ends."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.012, 1.005), ncols=5, frameon=False, borderaxespad=0,
            handlelength=1.9, columnspacing=1.5, handletextpad=0.6,
        )  # fmt: skip


def _level(axes: Axes, value: float, colour: str, text: str, *, above: bool) -> None:
    """A reference line, labelled at the end where the curves are not."""
    axes.axhline(value, color=COLOURS[colour], linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.5)
    axes.annotate(
        text, (0.0 if above else 100.0, value), xytext=(2 if above else -2, 4 if above else -4),
        textcoords="offset points", ha="left" if above else "right", va="bottom" if above else "top",
        color=COLOURS[colour], fontsize=9.5,
    )  # fmt: skip


def _curves(data: ReportData) -> tuple[Panel, Panel]:
    run, seed, rollout = data.upgrade, data.first, data.rollout
    recall = (run.curve, run.random_curve, run.oracle_curve)
    precision = (run.map_curve, run.random_map_curve, run.oracle_map_curve)
    new_map = run.map_curve if isinstance(run.map_curve, NotRun) else run.map_curve[-1].value
    return (
        Panel(
            "recall",
            "R@1, right first answers, during the refresh",
            f"Recall at 1 over coverage for {run.title}: entropy order, random order and an oracle, between the old "
            "system and the fully refreshed new model.",
            lambda axes: _draw_orders(axes, recall, seed.old_old, run.new_new, rollout.measured),
            run.curve if isinstance(run.curve, NotRun) else None,
        ),
        Panel(
            "map",
            "mAP, mean average precision, during the refresh",
            f"Mean average precision over coverage for {run.title}: entropy order, random order and an oracle.",
            lambda axes: _draw_orders(axes, precision, seed.old_old_map, new_map, rollout.measured_map),
            run.map_curve if isinstance(run.map_curve, NotRun) else None,
        ),
    )


def _draw_orders(
    axes: Axes, curves: Sequence[MeasuredCurve], old: float | NotRun, new: float | NotRun, measured: Curve
) -> None:
    entropy, random, oracle = curves
    _line(axes, entropy, "upgrade", "entropy", linewidth=2.4, zorder=4)
    _line(axes, random, "random", "random", linewidth=1.7, linestyle=(0, (4, 2)), zorder=3)
    _line(axes, oracle, "oracle", "oracle", linewidth=1.7, linestyle=(0, (1, 1.6)), zorder=3)
    _dots(axes, measured)
    levels = [100 * value for value in (old, new) if not isinstance(value, NotRun)]
    drawn: Any = [line.get_ydata() for line in axes.lines]
    values = [float(value) for line in drawn for value in line] + levels
    if not isinstance(old, NotRun):
        _level(axes, 100 * old, "old", f"old system {100 * old:.1f} %", above=False)
    if not isinstance(new, NotRun):
        _level(axes, 100 * new, "new", f"new model, all refreshed {100 * new:.1f} %", above=True)
    room = max(max(values) - min(values), 0.5)
    axes.set_ylim(min(values) - 0.18 * room, max(values) + 0.14 * room)
    _coverage_axis(axes)
    _percent_axis(axes)
    _key(axes)


def _flips(data: ReportData) -> tuple[Panel, Panel]:
    seed, rollout = data.first, data.rollout
    runs = [seed.method(name) for name in dict.fromkeys(("bct", "ract", data.certified_upgrade))]
    drawn = [(run, run.nfr_curve, run.name == data.certified_upgrade) for run in runs]
    risen = [(run, run.pfr_curve, run.name == data.certified_upgrade) for run in runs]
    return (
        Panel(
            "negative_flips",
            "Negative flips: right under the old system, wrong now",
            "Share of queries with a negative flip over coverage, for BCT, RACT and the certified upgrade.",
            lambda axes: _draw_flips(axes, drawn, rollout.measured_nfr),
            _nothing([curve for _, curve, _ in drawn]),
            _LABELS_BEHIND,
        ),
        Panel(
            "positive_flips",
            "Positive flips: wrong under the old system, right now",
            "Share of queries with a positive flip over coverage, for BCT, RACT and the certified upgrade.",
            lambda axes: _draw_flips(axes, risen, rollout.measured_pfr),
            _nothing([curve for _, curve, _ in risen]),
            _LABELS_BEHIND,
        ),
    )


def _nothing(curves: Sequence[MeasuredCurve]) -> NotRun | None:
    missing = [curve for curve in curves if isinstance(curve, NotRun)]
    return missing[0] if len(missing) == len(curves) else None


def _draw_flips(axes: Axes, runs: Sequence[tuple[MethodRun, MeasuredCurve, bool]], measured: Curve) -> None:
    shown = [(run, curve, ours) for run, curve, ours in runs if not isinstance(curve, NotRun)]
    for run, curve, ours in shown:
        style = {"linestyle": (0, (4, 2))} if run.name == "bct" else {}
        _line(
            axes, curve, "upgrade" if ours else run.name, "_", linewidth=2.4 if ours else 1.8,
            zorder=4 if ours else 3, **style,
        )  # fmt: skip
    _dots(axes, measured)
    top = max([100 * point.value for _, curve, _ in shown for point in curve] + [0.5])
    axes.set_ylim(0, 1.08 * top)
    ends = [100 * curve[-1].value for _, curve, _ in shown]
    for (run, _, ours), place in zip(shown, spaced(ends, 0.07 * top), strict=True):
        axes.annotate(
            run.title, (100, place), xytext=(7, 0), textcoords="offset points", va="center", annotation_clip=False,
            color=COLOURS["upgrade" if ours else run.name], fontweight="bold" if ours else "normal", fontsize=9.5,
        )  # fmt: skip
    _coverage_axis(axes)
    _percent_axis(axes)
    axes.set_xlim(0, 100)
    _key(axes)


def _timeline(data: ReportData) -> tuple[Panel, Panel]:
    rollout = data.rollout
    none = NotRun("the rollout took no samples of its rate")
    return (
        Panel(
            "throughput",
            "Items re-embedded per second",
            "Throughput in items per second over the seconds since start, with the moment of kill -9 marked.",
            lambda axes: _draw_series(axes, data, rollout.throughput, rate=True),
            None if rollout.throughput else none,
            top=_NO_KEY,
        ),
        Panel(
            "coverage",
            "Share of the gallery re-embedded",
            "Coverage in per cent over the seconds since start, with the moment of kill -9 marked.",
            lambda axes: _draw_series(axes, data, rollout.progress, rate=False),
            None if rollout.progress else none,
            top=_NO_KEY,
        ),
    )


def _draw_series(axes: Axes, data: ReportData, series: Sequence[tuple[float, float]], *, rate: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    across = [seconds for seconds, _ in series]
    up = [value if rate else 100 * value for _, value in series]
    axes.fill_between(across, up, color=COLOURS["upgrade"], alpha=0.14, linewidth=0)
    axes.plot(across, up, color=COLOURS["upgrade"], linewidth=2.0)
    axes.set_ylim(0, 1.22 * max([*up, 1e-9]) if rate else 118)
    axes.set_xlim(0, max([*across, 1e-9]))
    axes.set_xlabel("seconds since start")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    if rate:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
    else:
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    _mark_the_kill(axes, data)


def _mark_the_kill(axes: Axes, data: ReportData) -> None:
    killed = data.rollout.killed_worker
    if isinstance(killed, NotRun):
        return
    end = axes.get_xlim()[1]
    top = axes.get_ylim()[1]
    if killed.resumed_s is not None:
        axes.axvspan(killed.killed_s, killed.resumed_s, color=COLOURS["alarm"], alpha=0.1, linewidth=0)
    axes.axvline(killed.killed_s, color=COLOURS["alarm"], linewidth=1.4)
    left = killed.killed_s > 0.72 * end
    gap = "" if killed.resumed_s is None else f", {killed.resumed_s - killed.killed_s:.1f} s without a worker"
    axes.annotate(
        f"kill −9{gap}", (killed.killed_s, top), xytext=(-5 if left else 5, -2), textcoords="offset points",
        ha="right" if left else "left", va="top", color=COLOURS["alarm"], fontsize=9.5, fontweight="bold",
    )  # fmt: skip


def _text(data: ReportData) -> Panel:
    story = data.text
    return Panel(
        "text",
        "R@1 on texts during the refresh",
        "Recall at 1 over coverage for the text gallery, between the old and the new text model.",
        (lambda axes: None) if isinstance(story, NotRun) else (lambda axes: _draw_text(axes, story)),
        story if isinstance(story, NotRun) else None,
    )


def _draw_text(axes: Axes, story: TextStory) -> None:
    _draw_orders(axes, (story.curve, story.random_curve, NotRun("")), story.old_old, story.new_new, ())
