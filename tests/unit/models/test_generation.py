"""BLEU by characters: the value of pycocoevalcap 1.2 (run once), and a plain count."""

from __future__ import annotations

import math
import sys

import pytest

from models.errors import UsageError
from models.generation import character_bleu

TEXTS = ["雨停了船回来", "机器人在画海", "没有人在这里", "雨"]
REFERENCES = [
    ["雨停了，船都回来了", "船回来了"], ["机器人画大海", "机器人在画港口的海"], ["这里没有人"], ["下雨了", "雨"],
]  # fmt: skip


def test_the_value_is_that_of_the_other_implementation():
    assert character_bleu(TEXTS, REFERENCES) == pytest.approx(0.5271017464925507, abs=1e-9)


def test_counts_by_hand_latin_letters_and_blanks_among_them():
    # abcdef / abcdxf: 5 of 6, 3 of 5, 2 of 4, 1 of 3; equal lengths.
    assert character_bleu(["ab cd ef"], [["abcdxf"]]) == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    # Too short by two: everything agrees, the brevity penalty stays.
    assert character_bleu(["abcdef"], [["abcdefgh"]]) == pytest.approx(math.exp(1 - 8 / 6))
    assert character_bleu(["abcdef"], [["abcdefgh", "zzzzzz"]]) == pytest.approx(1)
    assert character_bleu(["abc", "abcde"], [["abc"], ["abcdf"]]) > 0
    assert character_bleu(["abc"], [["abc"]]) == 0  # no 4-gram
    assert character_bleu(["abcdx"], [["abcyd"]]) == 0  # none that is shared, and nothing is smoothed


@pytest.mark.parametrize(("texts", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_texts_without_references_are_refused(texts, references):
    with pytest.raises(ValueError, match="reference"):
        character_bleu(texts, references)


def test_without_sacrebleu_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UsageError, match=r"hotrefresh\[generation\]"):
        character_bleu(["a"], [["a"]])
