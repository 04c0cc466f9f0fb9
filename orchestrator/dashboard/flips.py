"""`/rollouts/ID/flips`: queries that are answered differently now, each with its old and its new answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.dashboard.lookups import items_shown, queries_shown, status_of
from orchestrator.dashboard.paging import Page, number_of
from orchestrator.dashboard.site import Site
from orchestrator.errors import UsageError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.service.names import find_gallery

A_PAGE = 20
SLICES = 200
# Filter → what may be chosen: the value in the address, and how it reads.
CHOICES = {
    "kind": {
        "negative": "negative: right before, wrong now",
        "positive": "positive: wrong before, right now",
    },
    "reference": {"old_system": "the old system", "previous_stage": "the previous stage"},
    "cause": {
        "mixed_stage": "mixed stage: the rest may heal it",
        "model": "the new model",
        "quantisation": "quantisation: the codec",
    },
    "fate": {"open": "open", "healed": "healed"},
}
NAMES = ("queryset", "kind", "reference", "cause", "k", "fate", "slice")


@dataclass(frozen=True)
class Filters:
    """What the address asks for, checked; empty: all."""

    asked: dict[str, str]

    @classmethod
    def of(cls, query: QueryParams) -> Filters:
        """Out of an address.

        Raises:
            UsageError: a value that no filter has.
        """
        asked = {name: query[name] for name in NAMES if query.get(name)}
        for name, choices in CHOICES.items():
            if name in asked and asked[name] not in choices:
                raise UsageError(f"{name} may be {' or '.join(choices)}, not {asked[name][:50]!r}.")
        if not asked.get("k", "1").isdecimal() or not 1 <= int(asked.get("k", "1")[:9]) <= 100:
            raise UsageError(f"k is a number from 1 to 100, not {asked['k'][:50]!r}.")
        if "slice" in asked and not all(asked["slice"].partition("=")[::2]):
            raise UsageError(f"a slice is written attribute=value, not {asked['slice'][:100]!r}.")
        return cls(asked)

    def bound(self) -> dict[str, Any]:
        """As the ledger's statements take them."""
        filters: dict[str, Any] = {name: value for name, value in self.asked.items() if name != "slice"}
        if "k" in filters:
            filters["k"] = int(filters["k"])
        if "slice" in self.asked:
            name, _, value = self.asked["slice"].partition("=")
            filters |= {"attribute": name, "attribute_value": value}
        return filters


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        filters, page = Filters.of(request.query_params), number_of(request.query_params.get("page"))
        rollout_id = request.path_params["rollout_id"]
        return site.page(
            request, "flips.html", **await site.read(read, site.context, rollout_id, filters, page)
        )

    return [Route("/rollouts/{rollout_id:int}/flips", show)]


def read(context: Context, rollout_id: int, filters: Filters, number: int) -> dict[str, Any]:
    """What the page shows."""
    status = status_of(context, rollout_id)
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, status.rollout["gallery"])
        bound = filters.bound()
        total = dashboard_queries.count_flips(connection, rollout_id, bound)
        page = Page(number, A_PAGE, more=number * A_PAGE < total, total=total)
        flips = dashboard_queries.flips_page(connection, rollout_id, bound, limit=A_PAGE, offset=page.offset)
        query_sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
        modalities = {each.name: each.modality for each in query_sets}
        slices = dashboard_queries.attribute_values(connection, gallery.id, SLICES)
        answers = [key for flip in flips for key in (flip["old_item"], flip["new_item"]) if key is not None]
        items = items_shown(connection, gallery.name, answers)
        deployed = log_queries.deployed_seq(connection, rollout_id) if flips else 0
        moments = [compared(flip, deployed) for flip in flips]
        versions = dashboard_queries.versions_then(
            connection, gallery.id, [then for pair in moments for then in pair if then is not None]
        )
        queries = queries_shown(connection, gallery.id, [(f["queryset"], f["query"]) for f in flips])
    return {
        "rollout": status.rollout,
        "status": status,
        "modality": gallery.modality,
        "flips": [
            {
                **flip,
                "asked": queries.get((flip["queryset"], flip["query"])),
                "asked_modality": modalities[flip["queryset"]],
                "old": items.get(flip["old_item"]),
                "new": items.get(flip["new_item"]),
                "versions": [versions.get(then) if then else None for then in pair],
            }
            for flip, pair in zip(flips, moments, strict=True)
        ],
        "filters": filters.asked,
        "choices": CHOICES,
        "query_sets": [each.name for each in query_sets],
        "ks": sorted({1, *context.settings.flip_ks}),
        "slices": slices,
        "page": page,
    }


Moment = tuple[str, int, int]


def compared(flip: dict[str, Any], deployed: int) -> tuple[Moment | None, Moment | None]:
    """For the old and the new answer: which item, and the newest rollout and log entry that it was compared under.

    Args:
        deployed: the log entry by which the rollout began to serve.
    """
    rollout, opened = flip["rollout"], flip["opened_seq"]
    # The old system is what served before this rollout. The previous stage is this rollout, one log entry ago; when it was
    # deployed, it is the old system as well.
    was_old = flip["reference"] == "old_system" or opened <= deployed
    before = (rollout - 1, opened) if was_old else (rollout, opened - 1)
    old, new = flip["old_item"], flip["new_item"]
    return (old, *before) if old is not None else None, (new, rollout, opened) if new is not None else None
