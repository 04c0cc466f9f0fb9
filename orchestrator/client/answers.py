"""What a search, and a look at galleries and rollouts, gives: the same types in process and from a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hit:
    """One item that was found. `model` and `rollout_id` are the version of its vector, `attributes` of what it was made of.

    `matches`: points that match the query, None where it was not compared; `verified`: whether it is a copy by the rule of
    docs/MATCHING.md. Both are None unless the search was told to match.
    """

    row: int
    key: str
    uri: str
    label: str | None
    score: float
    rollout_id: int
    model: str | None
    attributes: Mapping[str, str] = field(default_factory=dict)
    matches: int | None = None
    verified: bool | None = None


@dataclass(frozen=True)
class Answer:
    """The nearest items, nearest first.

    Attributes:
        model: the model that the query is of.
        rollout: the rollout that serves.
        log_sequence: the place of the gallery's log that was answered at.
        coverage_ratio: how much of the gallery that rollout has embedded.
        system: while a canary goes on, which of its two systems answered, old or new; else None.
        guarded: whether the model before helped, because the query was at risk.
    """

    gallery: str
    model: str
    rollout: int | None
    log_sequence: int
    coverage_ratio: float
    hits: tuple[Hit, ...]
    system: str | None = None
    guarded: bool = False


@dataclass(frozen=True)
class Gallery:
    """A gallery, the model that serves it, its newest rollout and that one's state."""

    id: int
    name: str
    modality: str
    n_items: int
    model: str | None
    rollout: int | None
    state: str | None


@dataclass(frozen=True)
class Rollout:
    """A rollout; `columns` is its whole row of `reporting.rollout_status`."""

    id: int
    gallery: str
    from_model: str | None
    to_model: str
    state: str
    reason: str | None
    coverage: float | None
    columns: Mapping[str, Any]


_ABSENT: dict[str, Any] = {"attributes": {}, "matches": None, "verified": None}


def answer_of(document: Mapping[str, Any], gallery: str, system: str | None = None) -> Answer:
    """An answer out of a server's JSON; names that a newer server adds are passed over.

    Args:
        system: of the whole request, where the document is one answer of several.

    Raises:
        KeyError, TypeError: it is no answer.
    """
    hits = tuple(
        Hit(**{name: (_ABSENT | hit)[name] for name in Hit.__dataclass_fields__}) for hit in document["hits"]
    )
    rest = {name: document[name] for name in ("model", "rollout", "log_sequence", "coverage_ratio")}
    system = document.get("system", system)
    return Answer(gallery, hits=hits, system=system, guarded=document.get("guarded", False), **rest)


def gallery_of(document: Mapping[str, Any]) -> Gallery:
    """A gallery out of a server's JSON."""
    return Gallery(**{name: document[name] for name in Gallery.__dataclass_fields__})


def rollout_of(document: Mapping[str, Any]) -> Rollout:
    """A rollout out of a server's JSON."""
    named = {name: document[name] for name in Rollout.__dataclass_fields__ if name != "columns"}
    return Rollout(columns=dict(document), **named)
