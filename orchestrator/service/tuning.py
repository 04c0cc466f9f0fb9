"""What an operator may change while a rollout runs: `set key=value`, checked here, obeyed by workers within a second."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import gates, throttles
from orchestrator.context import Context
from orchestrator.core.healing import MEASURES
from orchestrator.core.states import TERMINAL, RolloutState
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.names import find_query_set
from orchestrator.service.rollouts import locked, reread

LANES = ("urgent", "backfill", "repair")


@dataclass(frozen=True)
class Setting:
    """One thing that can be set: how its text is read, and what it does."""

    read: Callable[[str], Any]
    what: str


def _number(low: float, high: float, *, open_low: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high or (open_low and value == low):
            raise ValueError(f"it must lie {'above' if open_low else 'from'} {low:g} and be at most {high:g}")
        return value

    return read


def _count(high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not 1 <= value <= high:
            raise ValueError(f"it must be a whole number from 1 to {high}")
        return value

    return read


def _window(text: str) -> int | None:
    return None if text == "none" else _count(1_000_000)(text)


def _lane(text: str) -> str:
    if text not in LANES:
        raise ValueError(f"it must be one of {', '.join(LANES)}")
    return text


def _measure(text: str) -> str | None:
    if text != "none" and text not in MEASURES:
        raise ValueError(f"it must be one of {', '.join(MEASURES)}, none")
    return None if text == "none" else text


def _tables(name: str, resolved: Callable[[Any], Any]) -> Callable[[str], Any]:
    """Reads the tables of one name out of a TOML file."""

    def read(text: str) -> Any:
        if text == "none":
            return []
        try:
            tables = tomllib.loads(Path(text).read_text(encoding="utf-8")).get(name, [])
        except OSError as error:
            raise ValueError(f"the file cannot be read ({error.strerror})") from None
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"the file is not valid TOML ({error})") from None
        return resolved(tables)

    return read


SETTINGS = {
    "speed": Setting(_number(0, 1, open_low=True), "the part of the time that workers encode, above 0 to 1"),
    "window": Setting(_window, "batches in flight at once over all workers, or none for no limit"),
    "batch_size": Setting(_count(65_536), "items in a batch; batches that wait are cut anew"),
    "lane": Setting(_lane, "which rollout workers take first: urgent, backfill, repair"),
    "failure_budget": Setting(_number(0, 1), "the part of the last 1,000 items that may go into quarantine"),
    "lease_s": Setting(_number(0.5, 86_400), "seconds of a batch's lease; for batches claimed from now on"),
    "reorder": Setting(_measure, "what the items that wait follow: flips, demand, flips+demand, or none"),
    "reorder_queryset": Setting(
        lambda text: None if text == "none" else text,
        "the query set whose flips it follows, or none for all; gates need one that does not drive what they measure",
    ),
    "throttles": Setting(
        _tables("throttle", throttles.resolved), "a TOML file with [[throttle]] tables, or none"
    ),
    "gates": Setting(_tables("gate", gates.resolved), "a TOML file with [[gate]] tables, or none"),
    "rollback_window_s": Setting(
        _number(0, 10 * 365 * 86_400), "seconds after finalize in which it can go back"
    ),
}


def parse(assignment: str) -> tuple[str, Any]:
    """`key=value` as a setting's name and value.

    Raises:
        UsageError: not of that form, no such setting, or a value that it cannot take.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r} is not of the form key=value, such as speed=0.25.")
    if key not in SETTINGS:
        raise UsageError(
            f"{key!r} cannot be set; there are "
            + "; ".join(f"{name} ({setting.what})" for name, setting in SETTINGS.items())
            + "."
        )
    try:
        return key, SETTINGS[key].read(text.strip())
    except ValueError as error:
        raise UsageError(f"{key} cannot be {text!r}: {error}. It is {SETTINGS[key].what}.") from None


def set_values(context: Context, name: str | int, values: dict[str, Any]) -> RolloutRow:
    """Change settings of a rollout, all or none, with an audit row.

    Raises:
        ConflictError: the rollout is over.
        NotFoundError: a query set that the gallery does not have.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if RolloutState(row.state) in TERMINAL and set(values) != {"rollback_window_s"}:
            raise ConflictError(f"rollout {row.id} is {row.state}: nothing of it can be set any more.")
        if values.get("reorder_queryset") is not None:
            gallery = gallery_queries.gallery_by_id(connection, row.gallery_id)
            find_query_set(connection, gallery, values["reorder_queryset"])
        before = {key: current(row)[key] for key in values}
        changes = dict(values)
        batch_size = changes.pop("batch_size", None)
        if changes:
            rollout_queries.set_config(connection, row.id, changes)
        if batch_size is not None and batch_size != row.batch_size:
            batch_queries.cut_anew(connection, row.id, batch_size, row.plan_items)
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="rollout.set",
            target=str(row.id),
            before=before,
            after=values,
        )
    return reread(context, row.id)


def current(row: RolloutRow) -> dict[str, Any]:
    """Every setting and resolved value of a rollout."""
    return {
        "order": row.order_name,
        "batch_size": row.batch_size,
        "window": None,
        "reorder": None,
        "reorder_queryset": None,
        **row.config,
    }
