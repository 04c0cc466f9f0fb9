"""`/pictures/item` and `/pictures/query`: small pictures of what the ledger names. No path ever comes from a request."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from models.errors import ItemError, UsageError
from orchestrator.dashboard.lookups import uri_of_item, uri_of_query
from orchestrator.dashboard.site import Site
from orchestrator.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

EDGE = 192
STRIP_FRAMES, STRIP_EDGE = 6, 96
# An item's content may change under its key; a page that is looked at again is the usual case.
KEPT_S = 300


def routes(site: Site) -> list[Route]:
    """The addresses of pictures."""

    async def of_item(request: Request) -> Response:
        gallery, key = _named(request, "gallery", "key")
        modality = request.query_params.get("modality") or None
        return await _answer(site, await site.read(uri_of_item, site.context, gallery, key, modality))

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
    """A PNG of at most EDGE × EDGE pixels; smaller pictures stay as they are. Of a clip its frames side by side, see `strip`.

    Raises:
        ItemError: it cannot be read, or is a text.
    """
    import numpy as np

    from models.datasets import read_item

    picture = read_item(uri)
    if isinstance(picture, str):
        raise ItemError("unsupported", "it is a text.")
    if isinstance(picture, np.ndarray):
        picture = strip(picture)
    else:
        picture.thumbnail((EDGE, EDGE))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def strip(frames: npt.NDArray[np.uint8]) -> Image.Image:
    """STRIP_FRAMES frames of a clip, spread over it, side by side in the order of time: it needs no player, and nothing moves."""
    import numpy as np
    from PIL import Image

    from models.datasets.clips import spread

    small = []
    for frame in frames[spread(len(frames), STRIP_FRAMES)]:
        picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB")
        picture.thumbnail((STRIP_EDGE, STRIP_EDGE))
        small.append(np.asarray(picture))
    gap = np.full((small[0].shape[0], 2, 3), 128, np.uint8)
    parts = [part for picture in small for part in (gap, picture)][1:]
    return Image.fromarray(np.concatenate(parts, axis=1))
