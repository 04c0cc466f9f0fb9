"""The dashboard under a real server on a free loopback port, in this process."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from orchestrator.context import Context
from orchestrator.dashboard.server import make_server, open_socket
from tests.engine.api_server import until

TOKEN = "a-token-of-the-tests"


@contextmanager
def dashboard_url(context: Context, token: str | None = None) -> Iterator[str]:
    """The address of a dashboard on this context, for a browser or a client; with a token people sign in."""
    with open_socket("127.0.0.1", 0) as listening:
        server = make_server(context, token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def browser_of(context: Context, token: str | None = None) -> Iterator[httpx.Client]:
    """A client that keeps cookies and follows nothing by itself."""
    with dashboard_url(context, token) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def form_token(page: httpx.Response) -> str:
    """What the forms of a page hand back."""
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page.text)
    assert found is not None, "the page has no form"
    return found.group(1)


def send(client: httpx.Client, path: str, *, page: str | None = None, **fields: str) -> httpx.Response:
    """Send the form of a page (the path's own, unless another is named) as a browser does."""
    token = form_token(client.get(page or path))
    origin = str(client.base_url).rstrip("/")
    return client.post(path, data={"form_token": token, **fields}, headers={"Origin": origin})


def figures(page: httpx.Response, metric: str) -> list[tuple[str, dict[str, str]]]:
    """(exact value, its other labels) of every number of this name on a page."""
    found = []
    for tag in re.findall(r"<(?:data|span)\b([^>]*)>", page.text):
        attributes = dict(re.findall(r'data-([a-z_-]+)="([^"]*)"', tag))
        if attributes.pop("metric", None) == metric:
            found.append((attributes.pop("value"), attributes))
    return found
