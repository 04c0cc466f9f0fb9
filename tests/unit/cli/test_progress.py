"""Progress where a log is written."""

from __future__ import annotations

from cli import progress, session


def test_a_line_says_how_far_how_fast_and_how_long_still():
    line = progress.progress_line("embedding pics", "items", 30, 120, 10.0)
    assert line == "embedding pics: 30/120 items (25%), 3.0/s, 30 s left"


def test_without_a_total_only_the_time_is_said():
    assert progress.progress_line("searching", "items", 0, None, 12.4) == "searching: 12 s so far"


def test_before_the_first_item_there_is_no_estimate():
    assert progress.progress_line("x", "items", 0, 10, 5.0) == "x: 0/10 items (0%), 0.0/s"


def test_off_a_terminal_lines_come_on_stderr_and_never_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    session.configure({}, quiet=False, debug=False)
    with progress.progress("embedding", "items") as update:
        update(1, 2)
        said = ""
        while "embedding: 1/2" not in said:
            said += capsys.readouterr().err
    assert capsys.readouterr().out == ""


def test_quiet_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "WORTH_SAYING_S", 0.0)
    session.configure({}, quiet=True, debug=False)
    with progress.progress("embedding") as update:
        update(1, 2)
    session.configure({}, quiet=False, debug=False)
    assert capsys.readouterr() == ("", "")
