"""The options that `rollout plan` and `rollout start` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.orders import order_names

if TYPE_CHECKING:
    from orchestrator.service.start import StartRequest

To = Annotated[
    str | None, typer.Option("--to", metavar="MODEL", help="The model that shall serve the gallery.")
]
Codec = Annotated[
    str | None,
    typer.Option(metavar="CODEC", help="Instead of --to: make codes of what is stored; no item is read."),
]
Adapter = Annotated[
    str | None,
    typer.Option(help="Through this adapter: OLD-to-NEW lifts what is stored, NEW-to-OLD maps queries."),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="reembed, recode, transform-then-reembed, transform or query-adapter (default: by adapter or codec)."
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        help=f"Which items first: {', '.join(order_names())} (default entropy, with a codec flipped-bits)."
    ),
]
DemandBase = Annotated[
    str, typer.Option(help="Which order's scores the order demand weights: entropy, class_distance …")
]
REORDERS = ("none", "flips", "demand", "flips+demand")
Reorder = Annotated[
    str,
    typer.Option(
        help="What the items that wait follow while the refresh goes on: flips, demand, flips+demand or none."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, max=65_536, help="Items in a batch.")]
Prototypes = Annotated[
    str, typer.Option(help="auto, head (the new model's), classes (means by label) or clusters.")
]
Temperature = Annotated[float, typer.Option(min=1e-4, help="Of the softmax over prototypes.")]
CALIBRATIONS = ("auto", "off")
CalibrationMode = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="auto: new and old scores on one scale, where the certificate says it pays; off: raw.",
    ),
]
GuardMode = Annotated[
    bool,
    typer.Option(
        "--guard",
        help="While it runs, ask the old model too about queries that the mixture may answer wrong.",
    ),
]
LANES = ("urgent", "backfill", "repair")
Lane = Annotated[str, typer.Option(help="Which rollout workers take first: urgent, backfill or repair.")]
Supersede = Annotated[
    bool,
    typer.Option(
        "--supersede", help="Take the place of a rollout that still runs; what it committed stays in use."
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take batches back at once instead of waiting until workers let go or their leases end.",
    ),
]
Lease = Annotated[float | None, typer.Option("--lease-s", min=0.5, help="A batch's lease in seconds.")]


def target(to: str | None, codec: str | None) -> str:
    """The model of --to or --codec, of which there must be one."""
    from models.errors import UsageError

    if (to is None) == (codec is None):
        raise UsageError("say what shall serve the gallery: --to MODEL or --codec CODEC, one of them.")
    return to or codec or ""


def start_request(
    gallery: str, to: str, adapter: str | None, strategy: str | None, order: str | None, batch_size: int | None, prototypes: str,
    temperature: float, seed: int, lease_s: float | None, lane: str, supersede: bool,
    demand_base: str = "entropy", reorder: str = "none", calibration: str = "auto", guard: bool = False,
) -> StartRequest:  # fmt: skip
    """What was asked for, checked as far as it can be without a ledger."""
    from models.errors import UsageError
    from orchestrator.service.start import StartRequest

    known = ("auto", "head", "classes", "clusters")
    if prototypes not in known:
        raise UsageError(f"--prototypes {prototypes!r} is not known; choose one of {', '.join(known)}.")
    if lane not in LANES:
        raise UsageError(f"--lane {lane!r} is not known; choose one of {', '.join(LANES)}.")
    if reorder not in REORDERS:
        raise UsageError(f"--reorder {reorder!r} is not known; choose one of {', '.join(REORDERS)}.")
    if calibration not in CALIBRATIONS:
        raise UsageError(
            f"--calibration {calibration!r} is not known; choose one of {', '.join(CALIBRATIONS)}."
        )
    return StartRequest(
        gallery=gallery,
        to_model=to,
        adapter=adapter,
        strategy=strategy,
        order=order,
        batch_size=batch_size,
        prototypes=prototypes,
        temperature=temperature,
        seed=seed,
        lease_s=lease_s,
        lane=lane,
        supersede=supersede,
        demand_base=demand_base,
        reorder=None if reorder == "none" else reorder,
        calibration=calibration,
        guard=guard,
    )
