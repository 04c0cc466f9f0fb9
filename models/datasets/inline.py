"""Texts that travel inside their own URI, percent-encoded: `text:In%20the%20beginning`."""

from __future__ import annotations

from urllib.parse import quote, unquote

from models.errors import ItemError

MAX_TEXT_BYTES = 2**20


def uri_of(text: str) -> str:
    """text: URI of a text."""
    return "text:" + quote(text)


def read(uri: str) -> str:
    """The text inside a `text:` URI. Raises ItemError for an empty, an overlong or a broken one."""
    text = unquote(uri.partition(":")[2])
    if not text.strip():
        raise ItemError("empty", "the text is empty.")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise ItemError("corrupt", "the text holds half of a surrogate pair: it is no Unicode.") from error
    if size_bytes > MAX_TEXT_BYTES:
        raise ItemError("too_large", f"the text has {size_bytes} bytes; the limit is {MAX_TEXT_BYTES}.")
    return text
