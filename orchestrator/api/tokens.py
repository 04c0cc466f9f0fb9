"""The bearer tokens: of the environment, or of a file that only its owner may read, one a line, so that they can be changed
one after the other."""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.settings import Settings

LEAST_TOKEN = 16
MOST_FILE_BYTES = 65_536
# What a line of the log calls the only token.
ONLY = "token"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Tokens = Mapping[str, str]
"""Name → token."""


def tokens_of(settings: Settings) -> Tokens | None:
    """Every token by its name; None where none is set.

    A line of the file is `TOKEN`, or `NAME TOKEN`; blank lines and lines that begin with # do not count.

    Raises:
        UsageError: a file that others may read, or cannot be read at all; a token that is too short or no plain text; a name
            or a token twice.
    """
    if settings.api_token:
        return {ONLY: _checked(settings.api_token.strip(), "HOTREFRESH_API_TOKEN")}
    if settings.api_token_file is None:
        return None
    path = Path(settings.api_token_file)
    lines = [line.split() for line in _private_text(path).splitlines() if not line.lstrip().startswith("#")]
    lines = [line for line in lines if line]
    found: dict[str, str] = {}
    for number, parts in enumerate(lines, 1):
        unnamed = ONLY if len(lines) == 1 else f"{ONLY}-{number}"
        name, token = (unnamed, parts[0]) if len(parts) == 1 else (parts[0], " ".join(parts[1:]))
        if not _NAME.fullmatch(name) or name in found or token in found.values():
            raise UsageError(
                f"line {number} of {path} is no token of its own: write `TOKEN` or `NAME TOKEN`, each name and token once."
            )
        found[name] = _checked(token, str(path))
    return found or {ONLY: _checked("", str(path))}


def token_of(settings: Settings) -> str | None:
    """The first token, for those who need one: the dashboard's sign-in, and our own client.

    Raises:
        UsageError: as `tokens_of`.
    """
    tokens = tokens_of(settings)
    return None if tokens is None else next(iter(tokens.values()))


def named(tokens: Tokens, given: str) -> str | None:
    """Which token an Authorization header carries; every one is compared, so that the time taken says nothing."""
    found = None
    for name, token in tokens.items():
        if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            found = name
    return found


def _private_text(path: Path) -> str:
    try:
        # What is judged is what is read. A named pipe would not be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{path} is no file; put the API's token into one, mode 0600.")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise UsageError(
                    f"others may read {path}, which holds the API's token: run `chmod 600 {path}`."
                )
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the token's file {path} cannot be read: {error.strerror}.") from error
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(f"the token's file {path} is longer than {MOST_FILE_BYTES} bytes.")
    return content.decode("utf-8", "replace")


def _checked(token: str, where: str) -> str:
    if len(token) < LEAST_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(
            f"the token in {where} must be at least {LEAST_TOKEN} plain characters without spaces; "
            "`openssl rand -hex 32` makes one."
        )
    return token
