"""One bounded GET: 2 s in all, no redirect to another host, a body of limited size."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from orchestrator.throttles.base import TIMEOUT_S, ProbeError, ProbeRefused

_CHUNK = 65_536


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to the host, port and scheme that the operator named."""

    max_redirections = 3

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        asked, new = urlsplit(req.full_url), urlsplit(newurl)
        if (asked.scheme, asked.netloc) != (new.scheme, new.netloc):
            raise ProbeError(f"{asked.netloc} redirects to another host, {new.netloc}; name that one instead")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# Probes ask machines of one's own network: a proxy from the environment is not used.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _SameHost())


def get_text(url: str, *, most_bytes: int) -> str:
    """The body of a GET.

    Raises:
        ProbeRefused: a status other than 200.
        ProbeError: no answer in time, a body that is too large or not UTF-8, a redirect to another host.
    """
    host = urlsplit(url).netloc
    deadline = time.monotonic() + TIMEOUT_S
    try:
        with _OPENER.open(url, timeout=TIMEOUT_S) as answer:  # the scheme was checked at submit
            if answer.status != http.client.OK:
                raise ProbeRefused(answer.status)
            return _read(answer, host, most_bytes, deadline).decode()
    except urllib.error.HTTPError as error:
        error.close()
        raise ProbeRefused(error.code) from None
    except UnicodeDecodeError:
        raise ProbeError(f"{host} answered with something that is not UTF-8 text") from None
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = getattr(error, "reason", None) or error
        raise ProbeError(f"{host} does not answer: {str(reason) or type(error).__name__}") from error


def _read(answer: http.client.HTTPResponse, host: str, most_bytes: int, deadline: float) -> bytes:
    """The body, piece by piece: a time-out of the socket alone would let a slow sender go on for ever."""
    body = bytearray()
    while piece := answer.read1(_CHUNK):
        body += piece
        if len(body) > most_bytes:
            raise ProbeError(f"{host} answered with more than {most_bytes} bytes")
        if time.monotonic() > deadline:
            raise ProbeError(f"{host} did not finish its answer within {TIMEOUT_S:g} s")
    return bytes(body)
