"""CIDEr-D against the values of pycocoevalcap 1.2 (its cider_scorer alone, run once; it is no dependency)."""

from __future__ import annotations

import math

import pytest

from orchestrator.core.captioning import characters, cider

TEXTS = ["雨停了船回来", "机器人在画海", "没有人在这里", "雨"]
REFERENCES = [
    ["雨停了，船都回来了", "船回来了"], ["机器人画大海", "机器人在画港口的海"], ["这里没有人"], ["下雨了", "雨"],
]  # fmt: skip
WORDS = ["a robot paints the sea", "rain falls on the sea", "nobody is here"]
WORD_REFERENCES = [
    ["the robot paints a sea", "a robot is painting the sea today"],
    ["rain on the sea"],
    ["here is nobody", "nobody was here at all in the long grey morning"],
]


def test_by_characters_the_values_are_pycocoevalcaps():
    found = cider(
        [characters(t) for t in TEXTS], [[characters(r) for r in several] for several in REFERENCES]
    )
    assert found == pytest.approx([3.68265219, 4.54749324, 4.58396696, 1.73273292], abs=1e-8)


def test_what_is_repeated_counts_as_often_as_the_reference_has_it():
    texts = ["哈哈哈哈哈好", "雨停了", "好"]
    references = [["哈哈好", "真好"], ["雨停了船来"], ["好好好"]]
    found = cider(
        [characters(t) for t in texts], [[characters(r) for r in several] for several in references]
    )
    assert found == pytest.approx([1.20019772, 4.86945341, 2.36489867], abs=1e-8)


def test_by_words_the_values_are_pycocoevalcaps():
    found = cider([t.split() for t in WORDS], [[r.split() for r in several] for several in WORD_REFERENCES])
    assert found == pytest.approx([2.62772908, 4.12365902, 1.53869215], abs=1e-8)


def test_a_text_equal_to_its_reference_scores_ten_and_one_with_nothing_of_it_none():
    texts = [list("abcde"), list("fghij"), []]
    assert cider(texts, [[list("abcde")], [list("vwxyz")], [list("klmno")]]) == pytest.approx([10, 0, 0])


def test_what_every_text_has_weighs_nothing_and_one_text_alone_has_no_score():
    assert cider([list("aaaa")], [[list("aaaa")]]) == [0]
    assert cider([["x"], ["x"]], [[["x"]], [["x"]]]) == [0, 0]


def test_length_is_punished_by_a_gaussian():
    base = [list("abcdefgh"), list("stuvwxyz")]
    plain = cider(base, [[list("abcdefgh")], [list("stuvwxyz")]])[0]
    longer = cider(
        [list("abcdefgh" + "z" * 0), list("stuvwxyz")],
        [[list("abcdefgh") + list("12345")], [list("stuvwxyz")]],
    )[0]
    assert plain == pytest.approx(10)
    # All weights are log 2: of n, 9 - n grams of 14 - n are shared.
    cosines = [(9 - n) / math.sqrt((9 - n) * (14 - n)) for n in range(1, 5)]
    assert longer == pytest.approx(10 / 4 * sum(cosines) * math.exp(-(5**2) / 72))


def test_white_space_is_no_character():
    assert characters(" a\u3000b\n c") == ["a", "b", "c"]


@pytest.mark.parametrize(("texts", "references"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_texts_without_references_are_refused(texts, references):
    with pytest.raises(ValueError, match="reference"):
        cider(texts, references)
