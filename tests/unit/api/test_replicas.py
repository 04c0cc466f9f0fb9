"""Galleries that cannot be loaded."""

from __future__ import annotations

from types import SimpleNamespace

from orchestrator.api import replicas
from orchestrator.errors import UnreachableError


def test_why_a_gallery_cannot_be_loaded_is_logged_once_until_it_is_another_reason(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(replicas, "log", lambda event, **words: said.append(words["message"]))
    galleries = replicas.Replicas(context=None)
    reasons = iter(["away.", "away.", "away.", "no room."])

    def refuse(name):
        raise UnreachableError(next(reasons))

    monkeypatch.setattr(galleries, "of", refuse)
    for _ in range(4):
        galleries._try(SimpleNamespace(name="pics"))
    assert said == ["away.", "no room."]
    assert galleries._failed == {"pics": "no room."}
