"""Text that is safe to show, and places for labels that would overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LINE_AND_PARAGRAPH = {"Zl", "Zp"}


def visible(text: str) -> str:
    """The text with everything that acts instead of showing made visible.

    C0 controls become their pictures (U+2400 …); other controls, lone surrogates and characters that change the
    direction of what follows become `⟨U+202E⟩`. Letters of any script, joiners and line feeds stay.
    """
    return "".join(character if _harmless(character) else _shown(character) for character in text)


def _harmless(character: str) -> bool:
    category = unicodedata.category(character)
    if category in {"Cc", "Cs"} | _LINE_AND_PARAGRAPH:
        return character == "\n"
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return not turns and character not in "\u200e\u200f\u061c\ufffe\uffff"


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """The places, in their order, moved apart until neighbours are `gap` from each other, around their middle."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _bottom(groups[-1], places, gap) < _top(groups[-2], places, gap) + gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [0.0] * len(places)
    for group in groups:
        for step, index in enumerate(group):
            moved[index] = _bottom(group, places, gap) + step * gap
    return moved


def _bottom(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[index] for index in group) / len(group) - (len(group) - 1) * gap / 2


def _top(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _bottom(group, places, gap) + (len(group) - 1) * gap
