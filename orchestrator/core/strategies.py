"""How a new model takes over a gallery: rows of a table that says what each strategy needs and does.

Whoever moves a rollout asks its strategy, not its name. A new strategy is a row here and a value of the ledger's CHECK.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Direction(StrEnum):
    """Where an adapter leads: the stored embeddings to the new model, or new queries to the stored embeddings."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Strategy:
    """What an upgrade does with the stored embeddings.

    Attributes:
        adapter: the direction of the adapter that it needs; None: it takes none.
        reembeds: every item gets a new vector, in the order of a plan.
        recodes: it is made of the stored embedding, by a codec; no item is read.
        summary: what happens, in one sentence.
    """

    name: str
    adapter: Direction | None
    reembeds: bool
    summary: str
    recodes: bool = False

    @property
    def usual_order(self) -> str:
        """The backfill order of a rollout that names none."""
        return "flipped-bits" if self.recodes else "entropy"

    @property
    def lifts(self) -> bool:
        """Stored vectors go through the adapter, in bulk, before the new model serves."""
        return self.adapter is Direction.FORWARD

    @property
    def maps_queries(self) -> bool:
        """Queries go through the adapter, as long as the rollout serves."""
        return self.adapter is Direction.BACKWARD

    @property
    def holds_vectors(self) -> bool:
        """The gallery's vectors are of the new model's space from here on; otherwise they stay what they were."""
        return not self.maps_queries


REEMBED = Strategy(
    "reembed",
    None,
    reembeds=True,
    summary="New queries search the stored embeddings as they are, and every item is embedded anew (RACT, BCT).",
)
RECODE = Strategy(
    "recode",
    None,
    reembeds=True,
    recodes=True,
    summary="A codec makes codes of the stored embeddings, one batch after another; no item is read (BEBR).",
)
TRANSFORM_THEN_REEMBED = Strategy(
    "transform-then-reembed",
    Direction.FORWARD,
    reembeds=True,
    summary="Stored embeddings are lifted by an adapter, then every item is embedded anew (DMU, FastFill).",
)
TRANSFORM = Strategy(
    "transform",
    Direction.FORWARD,
    reembeds=False,
    summary="Stored embeddings are lifted by an adapter and stay so; no item is read (BiCT).",
)
QUERY_ADAPTER = Strategy(
    "query-adapter",
    Direction.BACKWARD,
    reembeds=False,
    summary="New queries are mapped to the stored embeddings, which stay as they are (Drift-Adapter).",
)

STRATEGIES = MappingProxyType(
    {each.name: each for each in (REEMBED, RECODE, TRANSFORM_THEN_REEMBED, TRANSFORM, QUERY_ADAPTER)}
)

_DEFAULT = {None: REEMBED, Direction.FORWARD: TRANSFORM_THEN_REEMBED, Direction.BACKWARD: QUERY_ADAPTER}


class UnfitStrategyError(ValueError):
    """The strategy does not exist, or does not go with the adapter; the message says what does."""


def choose(name: str | None, direction: Direction | None, *, recodable: bool = False) -> Strategy:
    """The strategy of a name, or the usual one for the adapter at hand.

    Args:
        direction: of the adapter that was given; None: none was.
        recodable: the new model is a codec, and the embeddings that it encodes are stored.

    Raises:
        UnfitStrategyError: an unknown name, or an adapter that the strategy cannot use.
    """
    if name is None:
        return RECODE if recodable and direction is None else _DEFAULT[direction]
    if name not in STRATEGIES:
        raise UnfitStrategyError(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}.")
    strategy = STRATEGIES[name]
    if strategy.recodes and not recodable:
        raise UnfitStrategyError(
            f"strategy {name!r} needs a codec of a model whose embeddings are stored (`hotrefresh codec train`); "
            "'reembed' embeds the items anew."
        )
    if strategy.adapter is direction:
        return strategy
    fitting = " or ".join(
        repr(s.name) for s in STRATEGIES.values() if s.adapter is direction and (recodable or not s.recodes)
    )
    given = "no adapter was given" if direction is None else f"the given adapter leads {_LEADS[direction]}"
    raise UnfitStrategyError(
        f"strategy {name!r} {_NEEDS[strategy.adapter]}, and {given}; that fits {fitting}."
    )


_NEEDS = {
    None: "takes no adapter",
    Direction.FORWARD: "needs an adapter from the stored model to the new one",
    Direction.BACKWARD: "needs an adapter from the new model to the stored one",
}
_LEADS = {
    Direction.FORWARD: "from the stored model to the new one",
    Direction.BACKWARD: "from the new model to the stored one",
}
