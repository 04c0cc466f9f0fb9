"""The verbs of a rollout: a page that says what would happen, and the form on it that does it. Nothing changes by GET."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator.api.log import log
from orchestrator.context import Context
from orchestrator.core.states import Verb, legal_verbs
from orchestrator.dashboard.lookups import status_of
from orchestrator.dashboard.site import Site
from orchestrator.errors import HotrefreshError, NotFoundError, UsageError
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service import background, finish, rollouts
from orchestrator.service.wait import RolloutStatus

REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Action:
    """A verb that the dashboard offers.

    Attributes:
        does: the command's own function: context, rollout id, reason.
        effect: what happens, with {gallery}, {from_model}, {to_model}, {committed}, {total} of the rollout.
        takes_back: it goes back to the old model: shown as dangerous.
        takes_reason: the audit trail keeps a reason.
    """

    verb: Verb
    label: str
    does: Callable[[Context, int, str | None], RolloutRow]
    effect: str
    takes_back: bool = False
    takes_reason: bool = True


_RETURN = (
    "{gallery} serves {from_model} with its old vectors again, at once. The {committed} embeddings made so far (of {total}) are "
    "no longer used."
)
ACTIONS = {
    "pause": Action(
        Verb.PAUSE,
        "Pause",
        lambda context, rollout_id, reason: rollouts.pause(context, rollout_id, reason),
        "Workers stop claiming and committing at once; {gallery} goes on answering with {to_model}. {committed} of {total} "
        "items are re-embedded and stay so.",
    ),
    "resume": Action(
        Verb.RESUME,
        "Resume",
        lambda context, rollout_id, reason: rollouts.resume(context, rollout_id),
        "Workers go on: {committed} of {total} items are re-embedded. The failure budget counts from here.",
        takes_reason=False,
    ),
    "finalize": Action(
        Verb.FINALIZE,
        "Finalize",
        lambda context, rollout_id, reason: finish.finalize(context, rollout_id),
        "{to_model} is accepted for {gallery}: {committed} of {total} items are re-embedded. It can be rolled back until its "
        "window closes.",
        takes_reason=False,
    ),
    "cancel": Action(
        Verb.CANCEL,
        "Cancel",
        lambda context, rollout_id, reason: rollouts.cancel(context, rollout_id, reason),
        "It stops for good. " + _RETURN,
        takes_back=True,
    ),
    "rollback": Action(
        Verb.ROLLBACK,
        "Roll back",
        lambda context, rollout_id, reason: rollouts.rollback(context, rollout_id, reason),
        _RETURN,
        takes_back=True,
    ),
}


def offered(status: RolloutStatus) -> list[tuple[str, Action]]:
    """The verbs that the state table allows now; a first embedding has nothing to go back to."""
    legal = legal_verbs(status.state)
    return [
        (name, action)
        for name, action in ACTIONS.items()
        if action.verb in legal
        and not (action.verb is Verb.ROLLBACK and status.rollout["from_model"] is None)
    ]


def effect_of(action: Action, rollout: dict[str, Any]) -> str:
    """What the verb would do to a rollout, in words."""
    if action.takes_back and rollout["from_model"] is None:
        return f"It stops for good. It is the first embedding of {rollout['gallery']}, which then serves nothing."
    counts = {name: f"{rollout[name]:,}" for name in ("committed", "total")}
    return action.effect.format(**{**rollout, **counts})


def routes(site: Site) -> list[Route]:
    """The confirmation's address, and where its form goes."""

    async def confirm(request: Request) -> Response:
        name, action = _asked(request)
        status = await site.read(status_of, site.context, request.path_params["rollout_id"])
        return site.page(
            request,
            "confirm.html",
            name=name,
            action=action,
            rollout=status.rollout,
            effect=effect_of(action, status.rollout),
            is_possible=action.verb in legal_verbs(status.state),
            reason_characters=REASON_CHARACTERS,
        )

    async def act(request: Request) -> Response:
        name, action = _asked(request)
        fields = await site.form(request)
        reason = fields.get("reason", "").strip() or None
        if reason is not None and (len(reason) > REASON_CHARACTERS or not reason.isprintable()):
            raise UsageError(f"a reason is one line of at most {REASON_CHARACTERS} characters.")
        rollout_id = request.path_params["rollout_id"]
        await site.read(status_of, site.context, rollout_id)  # raises where there is none
        await site.act(action.does, site.acting, rollout_id, reason)
        then = BackgroundTask(_see_to_a_worker, site.context) if action.verb is Verb.RESUME else None
        return RedirectResponse(f"/rollouts/{rollout_id}?done={name}", status_code=303, background=then)

    path = "/rollouts/{rollout_id:int}/{verb}"
    return [Route(path, confirm, methods=["GET"]), Route(path, act, methods=["POST"])]


def _asked(request: Request) -> tuple[str, Action]:
    name = request.path_params["verb"]
    if name not in ACTIONS:
        raise NotFoundError("there is no such page.")
    return name, ACTIONS[name]


def _see_to_a_worker(context: Context) -> None:
    """Beside embedded servers a resumed rollout needs a worker, as after the command; the page shows whether one lives."""
    try:
        background.ensure_worker(context)
    except HotrefreshError as error:
        log("worker.not_started", level="error", message=str(error))
