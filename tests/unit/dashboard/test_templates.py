"""The pages as they are filled: names of any kind stay text, empty pages say what to do, and nothing runs inside a page."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from orchestrator.dashboard.lookups import Shown
from orchestrator.dashboard.paging import Page
from orchestrator.dashboard.site import TEMPLATES, environment
from orchestrator.ledger.rows import GalleryRow, ItemRow

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
COMMON = {
    "path": "/",
    "signed_in": True,
    "needs_sign_in": True,
    "form_token": "f" * 64,
    "now": NOW,
    "version": "0.1.0",
}
PAGES = environment()
VOID = {"meta", "link", "input", "img", "br", "option", "hr"}


def render(template, **values):
    return PAGES.get_template(template).render(**{**COMMON, **values})


class Outline(HTMLParser):
    """What tags a page has, whether they are closed in order, and its headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.headings, self._open = [], [], [], []
        self.feed(text)
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another"


def flip(**more):
    shown = Shown(HOSTILE, HOSTILE, HOSTILE, None, {"model": HOSTILE, "adapter": HOSTILE})
    return {
        "query": HOSTILE,
        "queryset": HOSTILE,
        "kind": "negative",
        "reference": "old_system",
        "k": 1,
        "cause": "model",
        "old_item": HOSTILE,
        "new_item": HOSTILE,
        "old_score": 0.9,
        "new_score": 0.8,
        "opened_seq": 3,
        "healed_seq": None,
        "opened_at": NOW,
        "healed_at": None,
        "attributes": {HOSTILE: HOSTILE},
        "asked": shown,
        "old": shown,
        "new": shown,
        "versions": [{"model": HOSTILE, "adapter": None}, None],
        **more,
    }


ROLLOUT = {
    "id": 7,
    "gallery": HOSTILE,
    "from_model": HOSTILE,
    "to_model": HOSTILE,
    "state": "paused",
    "sub_state": None,
    "reason": HOSTILE,
    "committed": 3,
    "total": 9,
}
FLIPS = {
    "rollout": ROLLOUT,
    "modality": "image",
    "flips": [flip(), flip(healed_seq=4, healed_at=NOW, k=10, old=None, old_item=None)],
    "filters": {"slice": HOSTILE, "queryset": HOSTILE},
    "choices": {n: {HOSTILE: HOSTILE} for n in ("kind", "reference", "cause", "fate")},
    "query_sets": [HOSTILE],
    "ks": [1, 10],
    "slices": [HOSTILE],
    "page": Page(2, 20, more=True, total=70),
}
GALLERY = GalleryRow(1, HOSTILE, "text", HOSTILE, 3, NOW, 0, [])
ITEM = {
    "galleries": [HOSTILE],
    "gallery": GALLERY,
    "key": HOSTILE,
    "first": [],
    "others": {"image": Shown(HOSTILE, None, None, HOSTILE, None)},
    "row": 0,
    "attributes": {HOSTILE: HOSTILE},
    "item": Shown(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        None,
        {"model": HOSTILE, "adapter": HOSTILE, "rollout": 1, "batch": 0, "committed_at": NOW},
    ),
    "history": [
        {
            "rollout": 1,
            "model": HOSTILE,
            "adapter": HOSTILE,
            "strategy": "reembed",
            "state": "finalized",
            "batch": 0,
            "rank": 0,
            "seq": 1,
            "batch_state": "committed",
            "superseded": False,
            "hole": False,
            "reclaimed": False,
            "late": True,
            "uncertainty": 0.5,
            "committed_at": NOW,
        }
    ],
}
AUDIT = {
    "filters": dict.fromkeys(("actor", "action", "target"), HOSTILE),
    "page": Page(1, 50, more=True),
    "rows": [
        {
            "at": NOW,
            "actor": HOSTILE,
            "action": HOSTILE,
            "target": HOSTILE,
            "before": {HOSTILE: HOSTILE},
            "after": None,
        }
    ],
}
SERVING = {
    "gallery": HOSTILE,
    "galleries": [HOSTILE],
    "page": Page(1, 50, more=False),
    "rows": [
        {
            "gallery": HOSTILE,
            "model": HOSTILE,
            "rollout": 1,
            "valid_from": NOW,
            "valid_to": None,
            "actor": HOSTILE,
            "reason": HOSTILE,
        }
    ],
}
CELL = {"verdict": "certified", "adapter": HOSTILE, "value": 0.9, "shade": 4, "sampled_items": 240}
CERTIFICATES = {
    "sets": [(HOSTILE, HOSTILE)],
    "chosen": (HOSTILE, HOSTILE),
    "models": [HOSTILE],
    "cells": {(HOSTILE, HOSTILE): [CELL]},
    "certificates": [
        {
            **CELL,
            "query_model": HOSTILE,
            "gallery_model": HOSTILE,
            "measured": {"new_old": 0.9},
            "reason": HOSTILE,
            "created_at": NOW,
        }
    ],
    "modules": [
        {
            **dict.fromkeys(("module", "own_model", "metric", "model", "reason", "source"), HOSTILE),
            "old_value": 0.5,
            "new_value": 0.4,
            "n": 240,
            "verdict": "refused",
            "created_at": NOW,
            "retired_at": NOW,
        },
        dict.fromkeys(
            (
                "module",
                "own_model",
                "metric",
                "model",
                "reason",
                "source",
                "old_value",
                "new_value",
                "n",
                "verdict",
                "created_at",
                "retired_at",
            )
        ),
    ],
}
HOSTILE_PAGES = {
    "flips.html": FLIPS,
    "items.html": ITEM,
    "audit.html": AUDIT,
    "serving.html": SERVING,
    "certificates.html": CERTIFICATES,
    "error.html": {"title": "Refused", "message": HOSTILE, "path": f"/rollouts/{HOSTILE}/x"},
    "sign_in.html": {"then": HOSTILE, "wrong": True},
}
NO_PAGE = Page(1, 20, more=False, total=0)
EMPTY_PAGES = {
    "rollouts.html": {
        "galleries": [],
        "workers_alive": 0,
        "rollouts": [],
        "page": NO_PAGE,
        "next_command": "gallery create NAME SOURCE",
    },
    "items.html": {"galleries": [], "gallery": None, "item": None, "first": [], "key": None},
    "serving.html": {"gallery": None, "galleries": [], "rows": [], "page": NO_PAGE},
    "certificates.html": {
        "sets": [],
        "chosen": None,
        "models": [],
        "cells": {},
        "certificates": [],
        "modules": [],
    },
    "audit.html": {"filters": dict.fromkeys(("actor", "action", "target")), "rows": [], "page": NO_PAGE},
    "flips.html": {**FLIPS, "flips": [], "filters": {}, "query_sets": [], "slices": [], "page": NO_PAGE},
}


@pytest.mark.parametrize("template", HOSTILE_PAGES)
def test_no_name_becomes_markup(template):
    text = render(template, **HOSTILE_PAGES[template])
    outline = Outline(text)
    assert outline.tags.count("script") == 1, "our own, in the head"
    assert not [tag for tag, has in outline.attributes if any(name.startswith("on") for name in has)]
    assert "alert(1)" in text, "it is shown, as text"


@pytest.mark.parametrize("template", EMPTY_PAGES)
def test_an_empty_page_says_what_to_do_next(template):
    text = render(template, **EMPTY_PAGES[template])
    Outline(text)
    assert "<code>hotrefresh " in text


@pytest.mark.parametrize("pages", [HOSTILE_PAGES, EMPTY_PAGES], ids=["full", "empty"])
def test_every_page_has_a_title_landmarks_and_headings_in_order(pages):
    for template, values in pages.items():
        outline = Outline(render(template, **values))
        assert {"title", "header", "main", "footer"} <= set(outline.tags), template
        assert outline.headings[0] == 1, template
        assert outline.headings.count(1) == 1, template
        steps = [b - a for a, b in itertools.pairwise(outline.headings)]
        assert max(steps, default=0) <= 1, f"{template}: {outline.headings}"


def test_every_table_has_a_caption_and_every_field_a_label():
    for pages in (HOSTILE_PAGES, EMPTY_PAGES):
        for template, values in pages.items():
            outline = Outline(render(template, **values))
            assert outline.tags.count("table") == outline.tags.count("caption"), template
            labelled = {has.get("for") for tag, has in outline.attributes if tag == "label"}
            fields = [
                h for t, h in outline.attributes if t in ("input", "select") and h.get("type") != "hidden"
            ]
            assert {field["id"] for field in fields} == labelled, template
            assert all("scope" in has for tag, has in outline.attributes if tag == "th"), template
            assert all(has.get("alt") for tag, has in outline.attributes if tag == "img"), template


def test_nothing_in_the_templates_is_inline_or_from_elsewhere():
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", text), path.name
        assert not re.search(r"<script(?! src=\"/static/)", text), path.name
        assert not re.search(r"(src|href|action)=\"(https?:)?//", text), path.name
        assert "| safe" not in text, path.name


def test_an_item_without_a_key_is_offered_some():
    text = render(
        "items.html", **{**ITEM, "item": None, "key": None, "first": [ItemRow(0, HOSTILE, "text:a", None)]}
    )
    assert "/items?gallery=" in text
    assert Outline(text).tags.count("script") == 1


def test_a_text_that_cannot_be_read_says_why():
    gone = Shown("k", None, None, "it is not in the gallery any more", None)
    text = render("flips.html", **{**FLIPS, "modality": "text", "flips": [flip(old=gone)]})
    assert "Cannot be shown: it is not in the gallery any more." in text
    assert "<blockquote>" in text


def test_those_who_did_not_sign_in_see_no_links():
    assert "<nav" not in render("sign_in.html", then="/", wrong=False, signed_in=False)
