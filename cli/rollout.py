"""`hotrefresh rollout`: plan, start, watch, decide."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cli import rollout_traffic
from cli.options import GalleryName, Reason, RolloutName, Seed, Timeout, Yes
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show, show_rows
from cli.progress import progress, working
from cli.rollout_options import (
    Adapter,
    BatchSize,
    CalibrationMode,
    Codec,
    DemandBase,
    Force,
    GuardMode,
    Lane,
    Lease,
    Order,
    Prototypes,
    Reorder,
    Strategy,
    Supersede,
    Temperature,
    To,
    start_request,
    target,
)
from cli.session import confirm, current, next_step, open_ledger, say
from cli.watch import document, finish, goes_on, screen, start_worker, wait_with_bar, watch

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.ledger.rows import RolloutRow
    from orchestrator.service.start import StartRequest
    from orchestrator.service.wait import RolloutStatus

app = typer.Typer(no_args_is_help=True, help="Upgrades of a gallery's model.")


@app.command("plan", epilog="Example: hotrefresh rollout plan photos --to new --adapter old-to-new")
def plan_(
    gallery: GalleryName,
    to: To = None,
    codec: Codec = None,
    adapter: Adapter = None,
    strategy: Strategy = None,
    order: Order = None,
    batch_size: BatchSize = None,
    prototypes: Prototypes = "auto",
    temperature: Temperature = 0.05,
    seed: Seed = 0,
    lease_s: Lease = None,
    lane: Lane = "backfill",
    supersede: Supersede = False,
    demand_base: DemandBase = "entropy",
    reorder: Reorder = "none",
    calibration: CalibrationMode = "auto",
    guard: GuardMode = False,
    first: Annotated[int, typer.Option(min=0, help="How many of the first items to show.")] = 10,
    output: Output = Format.TABLE,
) -> None:
    """Show what `start` would do: certificate, batches, bytes, the first items. Changes nothing."""
    request = start_request(
        gallery,
        target(to, codec),
        adapter,
        strategy,
        order,
        batch_size,
        prototypes,
        temperature,
        seed,
        lease_s,
        lane,
        supersede,
        demand_base,
        reorder,
        calibration,
        guard,
    )
    with open_ledger() as context, working("planning"):
        from orchestrator.service.plan_preview import preview

        planned = preview(context, request, first)
    values = plain(planned)
    if not show(values, output):
        items = values.pop("first_items")
        certificate = values["certificate"]
        values["certificate"] = f"{certificate['verdict']}: {certificate['reason']}"
        draw(make_pairs(values), make_table(items, ("rank", "score", "key", "label")))
        say("nothing was changed")
    wanted = f"--to {to}" if to else f"--codec {codec}"
    options = "".join(
        f" --{name.replace('_', '-')} {value}"
        for name, value, default in (
            ("adapter", adapter, None),
            ("strategy", strategy, None),
            ("order", order, None),
            ("batch_size", batch_size, None),
            ("prototypes", prototypes, "auto"),
            ("temperature", temperature, 0.05),
            ("seed", seed, 0),
            ("lease_s", lease_s, None),
            ("lane", lane, "backfill"),
            ("demand_base", demand_base, "entropy"),
            ("reorder", reorder, "none"),
            ("calibration", calibration, "auto"),
        )
        if value != default
    )
    options += (" --supersede" if supersede else "") + (" --guard" if guard else "")
    next_step(f"rollout start {gallery} {wanted}{options}")


@app.command(epilog="Example: hotrefresh rollout start photos --to new --adapter old-to-new")
def start(
    gallery: GalleryName,
    to: To = None,
    codec: Codec = None,
    adapter: Adapter = None,
    strategy: Strategy = None,
    order: Order = None,
    batch_size: BatchSize = None,
    prototypes: Prototypes = "auto",
    temperature: Temperature = 0.05,
    seed: Seed = 0,
    lease_s: Lease = None,
    lane: Lane = "backfill",
    supersede: Supersede = False,
    demand_base: DemandBase = "entropy",
    reorder: Reorder = "none",
    calibration: CalibrationMode = "auto",
    guard: GuardMode = False,
    canary: rollout_traffic.Canary = None,
    shadow: rollout_traffic.Shadow = 0.0,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until every item is re-embedded.")
    ] = False,
    timeout: Timeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Serve the new model from now on; what happens to the stored embeddings is the strategy's. Exit code 5: no certificate."""
    request = start_request(
        gallery,
        target(to, codec),
        adapter,
        strategy,
        order,
        batch_size,
        prototypes,
        temperature,
        seed,
        lease_s,
        lane,
        supersede,
        demand_base,
        reorder,
        calibration,
        guard,
    )
    with open_ledger() as context:
        current.interrupted = (
            f"What was accepted goes on with a worker. Look: hotrefresh rollout status {gallery}"
        )
        if shadow and canary is None:
            canary = 0.0
        row = _start(context, replace(request, canary=canary, shadow=shadow))
        start_worker(context, row.id)
        if wait:
            wait_with_bar(context, row.id, f"re-embedding {gallery}", timeout)
        finish(context, row.id, output, accepted=not wait)


def _start(context: Context, request: StartRequest) -> RolloutRow:
    from orchestrator.service.start import start

    began, lifted = time.monotonic(), [0, 0.0]
    with progress(f"deploying {request.to_model}") as update:

        def adapted(done: int, total: int) -> None:
            lifted[:] = done, time.monotonic() - began
            update(done, total)

        row = start(context, request, adapted)
    part = "" if request.canary is None else f" {request.canary:g} % of the traffic of"
    say(
        f"{request.to_model} serves{part} {request.gallery} since {time.monotonic() - began:.2f} s after the request"
    )
    if lifted[0]:
        say(
            f"lifted {lifted[0]} stored embeddings, {lifted[0] / max(lifted[1], 1e-9):.0f}/s, no item was read"
        )
    return row


@app.command(epilog="Example: hotrefresh rollout status -w photos")
def status(
    rollout: RolloutName,
    follow: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on showing until it is finalizable or over.")
    ] = False,
    timeout: Timeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Show a rollout on one screen.

    With --watch the exit code says how it ended: 0 finalizable or finalized, 7 the same with quarantined items,
    4 paused, cancelled or rolled back, 1 failed, 9 timed out.
    """
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import rollout as find
        from orchestrator.service.wait import read_status

        rollout_id = find(context, rollout).id
        if follow:
            seen = watch(context, rollout_id, output, timeout)
        else:
            seen = read_status(context, rollout_id)
            if not show(document(seen), output):
                draw(screen(seen))
        then = _stuck(context, seen) or next_command(context, seen.rollout["gallery"])
    next_step(then)
    if follow:
        _exit_for(seen)


def _stuck(context: Context, seen: RolloutStatus) -> str | None:
    """What to do about a rollout that has work and no worker."""
    if seen.workers_alive or seen.state not in ("planned", "deployed", "backfilling"):
        return None
    return f"rollout resume {seen.id}" if context.embedded else "worker"


def _exit_for(seen: RolloutStatus) -> None:
    from orchestrator.errors import ExitCode

    if seen.state in ("cancelled", "rolled_back"):
        raise typer.Exit(ExitCode.CONFLICT)
    if seen.rollout["quarantined"]:
        raise typer.Exit(ExitCode.QUARANTINED)


@app.command("list", epilog="Example: hotrefresh rollout list photos")
def list_rollouts(
    gallery: Annotated[str | None, typer.Argument(metavar="GALLERY", help="Only this gallery's.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """List rollouts, newest first."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import gallery_exists, view

        gallery_exists(context, gallery)
        rows = view(context, "rollout_status", gallery=gallery)
        then = next_command(context, gallery)
    columns = (
        "id",
        "gallery",
        "from_model",
        "to_model",
        "adapter",
        "strategy",
        "state",
        "committed",
        "total",
        "quarantined",
        "started_at",
    )
    show_rows("rollouts", rows, columns, output)
    next_step(then)


@app.command(epilog="Example: hotrefresh rollout pause photos --reason 'GPUs are needed'")
def pause(
    rollout: RolloutName, force: Force = False, reason: Reason = None, output: Output = Format.TABLE
) -> None:
    """Stop claiming and committing at once; queries keep the new model. Paused already is fine.

    Nothing that was claimed before is committed after this. Workers let go of what they hold within a second or two; until
    then the sub-state is `pausing`.
    """
    with open_ledger() as context:
        from orchestrator.service.rollouts import pause

        _moved(context, pause(context, rollout, reason, force=force), output)


@app.command(epilog="Example: hotrefresh rollout resume photos")
def resume(rollout: RolloutName, output: Output = Format.TABLE) -> None:
    """Go on after a pause, with a worker where none is alive."""
    with open_ledger() as context:
        from orchestrator.service.rollouts import resume

        row = resume(context, rollout)
        start_worker(context, row.id)
        _moved(context, row, output)


@app.command(epilog="Example: hotrefresh rollout cancel photos --yes")
def cancel(
    rollout: RolloutName,
    force: Force = False,
    yes: Yes = False,
    reason: Reason = None,
    output: Output = Format.TABLE,
) -> None:
    """Stop for good and serve what was served before, the old model with the old vectors.

    From this moment nothing is committed any more. The state is `cancelling` until workers have let go, then `cancelled`.
    """
    with open_ledger() as context:
        from orchestrator.service.rollouts import cancel

        _confirm_return(context, rollout, "Cancelling", yes=yes)
        _moved(context, cancel(context, rollout, reason, force=force), output)


@app.command(epilog="Example: hotrefresh rollout finalize photos")
def finalize(
    rollout: RolloutName,
    when_ready: Annotated[
        bool,
        typer.Option("--when-ready", help="Where something blocks it, finalize as soon as nothing does."),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Accept the upgrade once every item is re-embedded. It can be rolled back until its window closes.

    Exit code 4 names what blocks it: paused, open_items, flips_not_counted, canary.
    """
    with open_ledger() as context:
        from orchestrator.service.finish import finalize

        row = finalize(context, rollout, when_ready=when_ready)
        if row.state != "finalized":
            say(f"accepted: rollout {row.id} is finalized when nothing blocks it any more")
        _moved(context, row, output)


@app.command(epilog="Example: hotrefresh rollout rollback photos --yes")
def rollback(
    rollout: RolloutName,
    force: Force = False,
    yes: Yes = False,
    reason: Reason = None,
    output: Output = Format.TABLE,
) -> None:
    """Restore the old model and the old vectors, also after finalize while the window is open."""
    with open_ledger() as context:
        from orchestrator.service.rollouts import rollback

        _confirm_return(context, rollout, "Rolling back", yes=yes)
        _moved(context, rollback(context, rollout, reason, force=force), output)


def _confirm_return(context: Context, name: str, doing: str, *, yes: bool) -> None:
    """Target, effect and count of a verb that goes back to the old model."""
    from orchestrator.service.listings import rollout
    from orchestrator.service.wait import read_status

    row = read_status(context, rollout(context, name).id).rollout
    if row["from_model"] is None:
        effect = "it is the gallery's first embedding"
    else:
        effect = f"{row['gallery']} serves {row['from_model']} with its old vectors again"
    confirm(
        f"{doing} rollout {row['id']} ({row['state']}): {effect}; "
        f"{row['committed']} of {row['total']} re-embedded items are no longer used.",
        yes=yes,
    )


def _moved(context: Context, row: RolloutRow, output: Format) -> None:
    """Print where a verb led, and what comes next. A verb that workers must acknowledge is waited for a moment."""
    from orchestrator.service.guide import next_command

    goes_on(row.id)
    status = _acknowledged(context, row.id)
    if not show(document(status), output):
        say(
            f"{'accepted: ' if _asked(status) else ''}rollout {row.id} of {status.rollout['gallery']} is "
            f"{status.rollout['sub_state'] if status.rollout['sub_state'] == 'pausing' else status.state.value}"
            + (f": {row.reason}" if row.reason else "")
        )
    next_step(next_command(context, status.rollout["gallery"]))


# How long a verb waits for workers to acknowledge it before it says "accepted".
ACKNOWLEDGE_S = 0.3


def _asked(status: RolloutStatus) -> bool:
    return status.state in ("cancelling", "rolling_back") or status.rollout["sub_state"] == "pausing"


def _acknowledged(context: Context, rollout_id: int) -> RolloutStatus:
    from orchestrator.service.wait import read_status

    deadline = time.monotonic() + ACKNOWLEDGE_S
    while _asked(status := read_status(context, rollout_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return status


rollout_traffic.add_commands(app, finalize)
for alias, verb in (("abort", cancel), ("undo", rollback)):
    app.command(alias, hidden=True, epilog=f"Example: hotrefresh rollout {alias} photos")(verb)
