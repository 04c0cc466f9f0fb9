"""How the command talks to the person."""

from __future__ import annotations

import pytest

from cli import session
from models.errors import UsageError


@pytest.fixture(autouse=True)
def _fresh():
    session.configure({}, quiet=False, debug=False)
    yield
    session.configure({}, quiet=False, debug=False)


def test_the_next_command_reaches_the_same_ledger_and_repeats_no_password(capsys):
    session.configure(
        {"data_dir": "my data", "database_url": "postgresql://me:secret@host/db"}, quiet=False, debug=False
    )
    session.next_step("gallery list")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("next: hotrefresh --data-dir 'my data' --database-url")
    assert said.err.endswith(" gallery list\n")
    assert "secret" not in said.err


def test_quiet_keeps_warnings(capsys):
    session.configure({}, quiet=True, debug=False)
    session.say("narration")
    session.next_step("gallery list")
    session.warn("no worker is alive")
    assert capsys.readouterr().err == "warning: no worker is alive\n"


def test_a_destructive_verb_shows_its_effect_and_refuses_where_nobody_can_be_asked(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(UsageError, match="--yes"):
        session.confirm("This drops 3 galleries.", yes=False)
    assert capsys.readouterr().err == "This drops 3 galleries.\n"
    session.confirm("This drops 3 galleries.", yes=True)
