"""`/sign-in` and `/sign-out`: the token is given once, and exchanged for a cookie that is not the token."""

from __future__ import annotations

import hmac
import re

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator.api.log import log
from orchestrator.dashboard.guard import cookie
from orchestrator.dashboard.sessions import Sessions
from orchestrator.dashboard.site import Site

# A path of ours: one slash, and nothing that a browser could take for another host.
_PATH = re.compile(r"/(?![/\\])[\x21-\x7e]*")


def routes(site: Site) -> list[Route]:
    """Signing in and out."""

    async def show(request: Request) -> Response:
        then = path_of(request.query_params.get("next"))
        if request.scope["signed_in"]:
            return RedirectResponse(then, status_code=303)
        return site.page(request, "sign_in.html", then=then, wrong=False)

    async def sign_in(request: Request) -> Response:
        fields = await site.form(request)
        then = path_of(fields.get("next"))
        if site.token is None:
            return RedirectResponse(then, status_code=303)
        if not hmac.compare_digest(fields.get("token", "").strip().encode(), site.token.encode()):
            log("sign_in.refused", level="warning", client=(request.client.host if request.client else ""))
            return site.page(request, "sign_in.html", http_status=401, then=then, wrong=True)
        seat = site.sessions.sign_in()
        return RedirectResponse(then, status_code=303, headers={"set-cookie": cookie(request, seat)})

    async def sign_out(request: Request) -> Response:
        await site.form(request)
        site.sessions.sign_out(request.scope["seat"])
        fresh = cookie(request, Sessions.new_seat())
        return RedirectResponse("/sign-in", status_code=303, headers={"set-cookie": fresh})

    return [
        Route("/sign-in", show, methods=["GET"]),
        Route("/sign-in", sign_in, methods=["POST"]),
        Route("/sign-out", sign_out, methods=["POST"]),
    ]


def path_of(text: str | None) -> str:
    """Where to go after signing in: a page of ours, or the first one."""
    return text if text is not None and _PATH.fullmatch(text) else "/"
