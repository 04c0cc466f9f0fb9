"""What every page needs: the ledger read in bounded time, a template filled, a form taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import anyio
import anyio.to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context as Filling
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from orchestrator import __version__
from orchestrator.context import Context
from orchestrator.dashboard import words
from orchestrator.dashboard.guard import MAX_FORM_BYTES
from orchestrator.dashboard.sessions import Sessions
from orchestrator.errors import UnreachableError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
# A page waits so long for the ledger; a verb, which may wait for flips to be counted, longer.
READ_S = 8.0
ACT_S = 30.0
FORM_S = 10.0
# Pages that are read at once; of pictures fewer, they take memory.
READERS = 8
DECODERS = 2

Answer = TypeVar("Answer")


class FormRefusedError(Exception):
    """A form that does not hold the token of its page."""


class BodyTooLongError(Exception):
    """More bytes came than a form may have."""


class Site:
    """The parts that pages share."""

    def __init__(self, context: Context, token: str | None) -> None:
        self.context = context
        self.token = token
        self.sessions = Sessions()
        self._readers = anyio.CapacityLimiter(READERS)
        self._decoders = anyio.CapacityLimiter(DECODERS)
        self._templates = environment()

    @property
    def acting(self) -> Context:
        """The context for verbs: the audit trail says that they came by a page."""
        return replace(self.context, actor=f"{self.context.actor} via dashboard")

    async def read(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Run a reading function in a thread.

        Raises:
            UnreachableError: the ledger did not answer within `READ_S`.
        """
        return await _within(READ_S, self._readers, function, *arguments)

    async def act(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Run a verb in a thread; as `read`, with more time."""
        return await _within(ACT_S, self._readers, function, *arguments)

    async def decode(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Read a picture in a thread; as `read`."""
        return await _within(READ_S, self._decoders, function, *arguments)

    def page(self, request: Request, template: str, *, http_status: int = 200, **values: Any) -> Response:
        """A filled template."""
        text = self._templates.get_template(template).render(
            **values,
            path=request.scope["path"],
            signed_in=request.scope["signed_in"],
            needs_sign_in=self.token is not None,
            form_token=self.sessions.form_token(request.scope["seat"]),
            now=datetime.now(UTC),
            version=__version__,
        )
        return HTMLResponse(text, status_code=http_status)

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form of ours.

        Raises:
            FormRefusedError: it does not hold the token of this browser's pages.
            BodyTooLongError, TimeoutError, UsageError: too long, too slow, no form.
        """
        body = b""
        with anyio.fail_after(FORM_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_FORM_BYTES:
                    raise BodyTooLongError
        try:
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=50))
        except ValueError as error:
            raise UsageError("the form cannot be read; open the page again.") from error
        if not self.sessions.fits(request.scope["seat"], fields.pop("form_token", "")):
            raise FormRefusedError
        return fields


async def _within(
    seconds: float, limiter: anyio.CapacityLimiter, function: Callable[..., Answer], *arguments: Any
) -> Answer:
    try:
        with anyio.fail_after(seconds):
            return await anyio.to_thread.run_sync(
                lambda: function(*arguments), abandon_on_cancel=True, limiter=limiter
            )
    except TimeoutError as error:
        raise UnreachableError(
            f"the ledger did not answer within {seconds:g} s; try again when it has less to do. What was sent by a form may "
            "have been done: the audit log knows."
        ) from error


def query_string(values: dict[str, Any], **changes: Any) -> str:
    """The part of an address behind its path, with some values changed; those that are None or empty are left out."""
    kept = {name: value for name, value in {**values, **changes}.items() if value not in (None, "")}
    return f"?{urlencode(kept)}" if kept else ""


@pass_context
def _moment(filling: Filling, at: datetime | None) -> Markup:
    return words.moment(at, filling["now"])


def environment() -> Environment:
    """The templates: everything is escaped unless it is markup that `words` made."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        figure=words.figure,
        pill=words.pill,
        moment=_moment,
        instant=words.instant,
        query_string=query_string,
    )
    made.filters.update(
        count=words.count,
        percent=words.percent,
        decimal=words.decimal,
        general=words.general,
        duration=words.duration,
        rate=words.rate,
        excerpt=words.excerpt,
        plain_json=words.plain_json,
    )
    return made
