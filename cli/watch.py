"""A rollout on one screen, and waiting for it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from cli.output import Format, cell, plain, show
from cli.progress import LINE_EVERY_S, progress, working
from cli.session import command, current, next_step, say, warn

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.service.wait import RolloutStatus

RESTARTS = 3
BAR_WIDTH = 30


def goes_on(rollout_id: int) -> None:
    """From here on Ctrl-C stops only the looking."""
    current.interrupted = (
        f"Rollout {rollout_id} goes on in its workers. Watch it: {command(f'rollout status -w {rollout_id}')}; "
        f"stop it: {command(f'rollout pause {rollout_id}')}"
    )


def start_worker(context: Context, rollout_id: int) -> None:
    """See that somebody does the work: a background worker beside embedded servers, a warning beside external ones."""
    from orchestrator.service.background import ensure_worker, live_workers

    goes_on(rollout_id)
    with working("starting a worker"):
        started = ensure_worker(context)
    if started is not None:
        say(
            f"worker {started.pid} started in the background; it leaves after {context.settings.worker_idle_s:g} s without work"
        )
    elif not live_workers(context):
        warn(f"no worker is alive. Start one: {command('worker')}")


class Supervisor:
    """Starts a background worker again when the last one died, a few times; the ledger lost nothing by it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._left = RESTARTS

    def look(self, status: RolloutStatus) -> None:
        """Called with every snapshot."""
        from orchestrator.core.states import RolloutState

        working_states = (RolloutState.PLANNED, RolloutState.DEPLOYED, RolloutState.BACKFILLING)
        if not self._context.embedded or status.workers_alive or status.state not in working_states:
            return
        if self._left == 0:
            from orchestrator.errors import UnreachableError
            from orchestrator.service.background import log_tail, worker_log

            log = worker_log(self._context.settings)
            raise UnreachableError(
                f"the background worker died {RESTARTS + 1} times: {log_tail(log)}. Full log: {log}. "
                f"Mend that, then `hotrefresh rollout resume {status.id}`; nothing that was committed is lost."
            )
        self._left -= 1
        warn("the worker is gone; starting another. What it had committed stands.")
        start_worker(self._context, status.id)


def wait_with_bar(context: Context, rollout_id: int, description: str, timeout_s: float | None) -> None:
    """Wait until nothing is left to embed.

    Raises:
        ConflictError, HotrefreshError, WaitTimeoutError: as `wait_for`.
    """
    from orchestrator.core.states import RolloutState
    from orchestrator.service.wait import wait_for

    supervisor = Supervisor(context)
    with progress(description) as update:

        def on_status(status: RolloutStatus) -> None:
            update(_done(status.rollout), status.rollout["total"])
            supervisor.look(status)

        wait_for(
            context, rollout_id, {RolloutState.FINALIZABLE, RolloutState.FINALIZED}, timeout_s, on_status
        )


def finish(context: Context, rollout_id: int, output: Format, *, accepted: bool = False) -> None:
    """Print where a rollout stands and what comes next.

    Raises:
        typer.Exit: 7 where it is done but for quarantined items.
    """
    from orchestrator.errors import ExitCode
    from orchestrator.service.guide import next_command
    from orchestrator.service.wait import read_status

    status = read_status(context, rollout_id)
    row = status.rollout
    if not show({"accepted": accepted, **document(status)}, output):
        word = "accepted: rollout" if accepted else "rollout"
        say(
            f"{word} {rollout_id} of {row['gallery']} is {row['state']}: {_done(row)} of {row['total']} items done"
        )
    if row["quarantined"] and status.state in ("finalizable", "finalized"):
        warn(
            f"{row['quarantined']} items are quarantined: {command(f'ledger errors --rollout {rollout_id}')}"
        )
        next_step(f"ledger errors --rollout {rollout_id}")
        raise typer.Exit(ExitCode.QUARANTINED)
    next_step(next_command(context, row["gallery"]))


def watch(context: Context, rollout_id: int, output: Format, timeout_s: float | None) -> RolloutStatus:
    """Show a rollout until it is finalizable or over: live on a terminal, a line a change elsewhere, JSON Lines.

    Raises:
        ConflictError, HotrefreshError, WaitTimeoutError: as `wait_for`.
    """
    from orchestrator.core.states import RolloutState
    from orchestrator.service.wait import wait_for

    goes_on(rollout_id)
    until = {RolloutState.FINALIZABLE, RolloutState.FINALIZED}
    if output is Format.TABLE and sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            return wait_for(
                context,
                rollout_id,
                until,
                timeout_s,
                lambda status: live.update(screen(status), refresh=True),
                poll_s=0.5,
            )
    printer = _Lines(output)
    return wait_for(context, rollout_id, until, timeout_s, printer.look, poll_s=0.5)


class _Lines:
    """For a log: a JSON document for every snapshot that differs, or a line when the state does, and every ten seconds."""

    def __init__(self, output: Format) -> None:
        self._output = output
        self._last: tuple[Any, ...] = ()
        self._said_at = 0.0

    def look(self, status: RolloutStatus) -> None:
        row, now = status.rollout, time.monotonic()
        seen = (row["state"], row["sub_state"], status.workers_alive, row["committed"], row["quarantined"])
        if self._output is not Format.TABLE:
            if seen != self._last:
                show(document(status), self._output, lines=True)
        elif seen[:3] != self._last[:3] or now - self._said_at >= LINE_EVERY_S:
            typer.echo(line(status))
            self._said_at = now
        self._last = seen


def document(status: RolloutStatus) -> dict[str, Any]:
    """The snapshot as JSON shows it."""
    return {
        **status.rollout,
        "queue": status.queue,
        "workers_alive": status.workers_alive,
        "coverage_by_model": status.coverage,
        "flips": status.flips,
        "gates": status.gates,
        "churn": status.churn,
        "clicks": status.clicks,
    }


def line(status: RolloutStatus) -> str:
    """The snapshot in one line of a log."""
    row = status.rollout
    parts = [
        f"rollout {status.id} {_state(row)}",
        f"{_done(row)}/{row['total']}",
        _rate(row),
        f"{status.workers_alive} workers",
    ]
    return ", ".join(parts)


def screen(status: RolloutStatus) -> Any:
    """The snapshot on one screen."""
    from rich.table import Table
    from rich.text import Text

    from orchestrator.core.states import TERMINAL

    row = status.rollout
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    change = (
        f"{row['from_model']} → {row['to_model']}"
        if row["from_model"]
        else f"first embedding by {row['to_model']}"
    )
    through = f" through {row['adapter']}" if row["adapter"] else ""
    lines = {
        f"rollout {status.id}": f"{row['gallery']}: {change}{through}",
        "strategy": row["strategy"] + (f", plan {row['plan_revision']}" if row["plan_revision"] else ""),
        "state": _state(row),
        "progress": _bar(row),
        "rate": "-" if status.state in TERMINAL else _rate(row),
        "queue": _queue(status),
        "workers": f"{status.workers_alive} alive" if status.workers_alive else "none alive",
        "coverage": " · ".join(f"{c['model']} {c['ratio']:.1%}" for c in status.coverage) or "-",
        "flips": "\n".join(_flips(each) for each in status.flips) or _no_flips(status),
        **_weaker(status),
        "gates": "\n".join(_gate(each) for each in status.gates) or "none configured, or none judged yet",
        "times": f"started {cell(plain(row['started_at']))}, paused for {row['paused_s']:.0f} s, by {row['actor']}",
    }
    for name, text in lines.items():
        grid.add_row(Text(name), Text(cell(text)))
    return grid


def _weaker(status: RolloutStatus) -> dict[str, str]:
    """Lines for the query sets of which nobody knows what is right; none where there are none."""
    lines = {
        "churn": "\n".join(_churn(each) for each in status.churn if each["relevance"] in ("none", "clicks")),
        "clicks": "\n".join(_clicks(each) for each in status.clicks),
    }
    return {name: text for name, text in lines.items() if text}


def _churn(row: dict[str, Any]) -> str:
    if not row["n"]:
        return f"{row['queryset']}: no query could be read by both models"
    return (
        f"{row['queryset']}: overlap {row['overlap']:.2%} of the first {row['k']}, rank-biased {row['rbo']:.2%}, "
        f"first answer changed for {row['first_changed']:.2%} of {row['n']} queries" + _at_coverage(row)
    )


def _clicks(row: dict[str, Any]) -> str:
    share = f" ({row['loss_rate']:.2%}, {row['ci_low']:.2%} to {row['ci_high']:.2%})" if row["n"] else ""
    return (
        f"{row['queryset']}: {row['click_losses']} lost{share}, {row['click_gains']} gained, of {row['n']} queries"
        + _at_coverage(row)
    )


def _at_coverage(row: dict[str, Any]) -> str:
    return "" if row["coverage"] is None else f", at {row['coverage']:.1%} coverage"


def _no_flips(status: RolloutStatus) -> str:
    row = status.rollout
    if row["from_model"] is None:
        return "-"  # a first embedding replaces no answers
    if status.churn:
        return "not counted: no query set has labels or pairs"
    return f"none yet; `hotrefresh queryset list {row['gallery']}` shows what they are counted on"


def _done(row: dict[str, Any]) -> int:
    return int(row["committed"]) + int(row["quarantined"])


def _state(row: dict[str, Any]) -> str:
    text = str(row["state"])
    if row["sub_state"] == "throttled":
        text += f" (throttled by {row['throttle_reason']}: {row['throttle_value']:g}, the limit is {row['throttle_limit']:g})"
    elif row["sub_state"]:
        text += f" ({row['sub_state']})"
    return f"{text}: {row['reason']}" if row["reason"] else text


def _bar(row: dict[str, Any]) -> str:
    total = int(row["total"])
    if not total:
        return "no item is embedded anew"
    share = _done(row) / total if total else 0.0
    full = int(share * BAR_WIDTH)
    text = f"{'━' * full}{'╌' * (BAR_WIDTH - full)} {_done(row)}/{total} ({share:.1%})"
    return f"{text}, {row['quarantined']} quarantined" if row["quarantined"] else text


def _rate(row: dict[str, Any]) -> str:
    rate = f"{row['rate_per_s']:.1f} items/s" if row["rate_per_s"] is not None else "no recent rate"
    eta = f"{row['eta_s']:.0f} s left" if row["eta_s"] is not None else "no estimate"
    return f"{rate}, {eta}"


def _queue(status: RolloutStatus) -> str:
    if not status.queue:
        return "no batch is planned yet"
    return " · ".join(_band(band) for band in status.queue if band["depth"] or band["leased"]) or "empty"


def _band(band: dict[str, Any]) -> str:
    name = "late items" if band["band"] < 0 else f"band {band['band']}"
    return f"{name}: {band['depth']} waiting, {band['leased']} leased ({band['queue_state']})"


def _gate(row: dict[str, Any]) -> str:
    where = f" on {row['queryset']}" if row["queryset"] else ""
    dry = " (dry run)" if row["dry_run"] else ""
    return f"{row['gate']}{where}: {row['result']}{dry}, {row['measure']} {row['reason']}"


def _flips(row: dict[str, Any]) -> str:
    share = f" ({row['nfr']:.2%}, {row['ci_low']:.2%} to {row['ci_high']:.2%})" if row["n"] else ""
    return (
        f"{row['queryset']}: {row['negative_flips']} negative{share}, {row['positive_flips']} positive, "
        f"of {row['n']} queries" + _at_coverage(row)
    )
