"""`hotrefresh rollout set, get, retry, reclaim, history`: what is changed and looked up beside the way of a rollout."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import GalleryName, RolloutName, Yes
from cli.output import Format, Output, show, show_object, show_rows
from cli.progress import working
from cli.rollout import app
from cli.session import confirm, next_step, open_ledger, say
from cli.watch import start_worker


@app.command(epilog="Example: hotrefresh rollout history photos")
def history(rollout: RolloutName, output: Output = Format.TABLE) -> None:
    """Show every state a rollout was in, with who, when and why."""
    with open_ledger() as context:
        from orchestrator.service.guide import next_command
        from orchestrator.service.listings import rollout as find
        from orchestrator.service.listings import view

        row = find(context, rollout)
        rows: list[dict[str, Any]] = view(context, "audit", target=str(row.id))
        then = next_command(context)
    if output is Format.TABLE:
        rows = [r | {"reason": (r["after"] or {}).get("reason")} for r in rows]
    show_rows("history", rows, ("at", "actor", "action", "reason"), output)
    next_step(then)


@app.command("set", epilog="Example: hotrefresh rollout set photos speed=0.25 window=8")
def set_(
    rollout: RolloutName,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="speed, window, batch_size, lane, failure_budget, lease_s, reorder, reorder_queryset, throttles, gates, "
            "rollback_window_s.",
        ),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Change how a rollout runs, at once and all or none: workers obey within a second.

    speed=0.25 lets workers encode a quarter of the time; window=8 allows eight batches in flight (none: no limit);
    batch_size=512 cuts the batches that wait anew; lane=urgent|backfill|repair says which rollout comes first;
    failure_budget=0.02 lets 2 % of the last 1,000 items go into quarantine before the rollout is paused;
    reorder=flips|demand|flips+demand|none says what the items that wait follow, reorder_queryset=NAME (or none) whose flips;
    throttles=FILE.toml (or none) says what holds workers back, gates=FILE.toml (or none) what pauses it or takes it back.
    """
    from orchestrator.service.tuning import current, parse, set_values

    values = dict(parse(assignment) for assignment in assignments)
    with open_ledger() as context:
        row = set_values(context, rollout, values)
    show_object({key: current(row)[key] for key in values}, output)
    next_step(f"rollout status {row.id}")


@app.command(epilog="Example: hotrefresh rollout get photos lease_s")
def get(
    rollout: RolloutName,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="One value; without it all.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the configuration that was resolved when the rollout started, with what was set since."""
    from orchestrator.errors import NotFoundError
    from orchestrator.service.tuning import current

    with open_ledger() as context:
        from orchestrator.service.listings import rollout as find

        row = find(context, rollout)
    config = current(row)
    if key is not None and key not in config:
        raise NotFoundError(
            f"rollout {row.id} has no setting {key!r}; there are {', '.join(sorted(config))}."
        )
    show_object(config if key is None else {key: config[key]}, output)
    next_step(f"rollout status {row.id}")


@app.command(epilog="Example: hotrefresh rollout reorder photos --by flips")
def reorder(
    rollout: RolloutName,
    by: Annotated[
        str,
        typer.Option(
            help="flips (what heals most open flips first), demand (what is retrieved most) or flips+demand."
        ),
    ] = "flips",
    output: Output = Format.TABLE,
) -> None:
    """Re-rank the items that wait, now and once. What is committed or being worked on stays where it is.

    `rollout start --reorder` or `rollout set GALLERY reorder=flips` let it be done again and again.
    """
    with open_ledger() as context, working("looking for what to take first"):
        from orchestrator.service.reorder import reorder as rerank

        done = rerank(context, rollout, by)
    if not show(done, output):
        say(
            f"rollout {done.rollout_id}: plan revision {done.plan_revision}; {done.items} items in {done.batches} batches have "
            "another place"
            if done.items
            else f"rollout {done.rollout_id}: nothing to move, it stays at plan revision {done.plan_revision}"
        )
    next_step(f"rollout status {done.rollout_id}")


@app.command(epilog="Example: hotrefresh rollout retry photos --what failed")
def retry(
    rollout: RolloutName,
    what: Annotated[
        str,
        typer.Option(
            help="missing (batches that wait for their next attempt), failed (and items in quarantine) or all (every item)."
        ),
    ] = "failed",
    output: Output = Format.TABLE,
) -> None:
    """Try again what could not be done. What serves stays until something newer is committed."""
    from models.errors import UsageError
    from orchestrator.service.retry import What
    from orchestrator.service.retry import retry as again

    if what not in tuple(What):
        raise UsageError(f"--what {what!r} is not known; choose one of {', '.join(What)}.")
    with open_ledger() as context:
        done = again(context, rollout, What(what))
        if done.items or done.batches:
            start_worker(context, done.rollout_id)
    if not show(done, output):
        say(f"accepted: {done.batches} batches are due at once, {done.items} items are embedded again")
    next_step(f"rollout status -w {done.rollout_id}")


@app.command(epilog="Example: hotrefresh rollout reclaim photos --dry-run")
def reclaim(
    gallery: GalleryName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; change nothing.")] = False,
    drop_unreadable: Annotated[
        bool,
        typer.Option(
            "--drop-unreadable", help="Also give up vectors of items that could not be embedded anew."
        ),
    ] = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove old vectors that no search and no rollback can need any more, once the rollback window is closed."""
    from orchestrator.service.finish import reclaim as give_space_back

    with open_ledger() as context:
        found = give_space_back(context, gallery, dry_run=True)
        if found.rollouts and not dry_run:
            confirm(
                f"Reclaiming {found.freed_bytes / 2**20:.1f} MiB of gallery {found.gallery}: the vectors of rollouts "
                f"{', '.join(map(str, found.rollouts))} are removed for good.",
                yes=yes,
            )
            found = give_space_back(context, gallery, drop_unreadable=drop_unreadable)
    if not show(found, output):
        what = (
            "nothing can be reclaimed now"
            if not found.rollouts
            else (
                f"{'would reclaim' if dry_run else 'reclaimed'} {found.freed_bytes / 2**20:.1f} MiB of rollouts "
                f"{', '.join(map(str, found.rollouts))}"
            )
        )
        if found.kept_floats:
            what += f"; the embeddings of rollouts {', '.join(map(str, found.kept_floats))} are kept, codes are made of them"
        say(what)
    next_step(f"gallery show {found.gallery}")
