"""`/pictures/item` and `/pictures/query`: small pictures of what the ledger names. No path ever comes from a request."""

from __future__ import annotations

import io

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from models.errors import ItemError, UsageError
from orchestrator.dashboard.lookups import uri_of_item, uri_of_query
from orchestrator.dashboard.site import Site
from orchestrator.errors import NotFoundError

EDGE = 192
# An item's content may change under its key; a page that is looked at again is the usual case.
KEPT_S = 300


def routes(site: Site) -> list[Route]:
    """The addresses of pictures."""

    async def of_item(request: Request) -> Response:
        gallery, key = _named(request, "gallery", "key")
        return await _answer(site, await site.read(uri_of_item, site.context, gallery, key))

    async def of_query(request: Request) -> Response:
        gallery, queryset, key = _named(request, "gallery", "queryset", "key")
        return await _answer(site, await site.read(uri_of_query, site.context, gallery, queryset, key))

    return [Route("/pictures/item", of_item), Route("/pictures/query", of_query)]


def _named(request: Request, *names: str) -> list[str]:
    values = [request.query_params.get(name, "") for name in names]
    if not all(values):
        raise NotFoundError(f"a picture is named by {', '.join(names)}.")
    return values


async def _answer(site: Site, uri: str) -> Response:
    try:
        content = await site.decode(thumbnail, uri)
    except (ItemError, UsageError) as error:
        return PlainTextResponse(f"{error}\n", status_code=404)
    return Response(content, media_type="image/png", headers={"Cache-Control": f"private, max-age={KEPT_S}"})


def thumbnail(uri: str) -> bytes:
    """A PNG of at most EDGE × EDGE pixels; smaller pictures stay as they are.

    Raises:
        ItemError: it cannot be read, or is no picture.
    """
    from models.datasets import read_item

    picture = read_item(uri)
    if isinstance(picture, str):
        raise ItemError("unsupported", "it is a text.")
    picture.thumbnail((EDGE, EDGE))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()
