"""What a command's exit status says: one test a code, and the message that comes with it."""

from __future__ import annotations

import pytest

import orchestrator.settings
from cli.main import main
from orchestrator import errors
from orchestrator.errors import ExitCode


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def raising(monkeypatch):
    """`config show` then raises what it is given."""

    def run(error, *root):
        def fail(**flags):
            raise error

        monkeypatch.setattr(orchestrator.settings, "load_settings", fail)
        return main([*root, "config", "show"])

    return run


def test_0_done(capsys):
    assert main(["version"]) == ExitCode.DONE == 0
    assert "hotrefresh" in capsys.readouterr().out


def test_1_unexpected_error_in_one_line_without_traceback(raising, capsys):
    assert raising(RuntimeError("the sky fell\nand more")) == ExitCode.ERROR == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected RuntimeError: the sky fell.")
    assert "--debug" in said
    assert "Traceback" not in said


def test_1_with_debug_shows_the_traceback(raising, capsys):
    assert raising(RuntimeError("the sky fell"), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_2_usage_of_an_unknown_option(capsys):
    assert main(["gallery", "list", "--nonsense"]) == ExitCode.USAGE == 2
    said = capsys.readouterr().err
    assert "--nonsense" in said
    assert "hotrefresh gallery list --help" in said


def test_2_usage_of_options_that_do_not_go_together(capsys):
    assert main(["gallery", "search", "pics", "--text", "x", "--key", "y"]) == 2
    assert "one of --text TEXT, --image FILE, --video FILE, --key KEY" in capsys.readouterr().err


def test_2_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_2_configuration_that_does_not_fit(monkeypatch, capsys):
    monkeypatch.setenv("HOTREFRESH_BATCH_SIZE", "many")
    assert main(["config", "show"]) == 2
    said = capsys.readouterr().err
    assert "batch_size" in said
    assert "'many'" in said


def test_3_not_found(capsys):
    assert main(["bench", "nonsense"]) == ExitCode.NOT_FOUND == 3
    assert "there is no benchmark 'nonsense'" in capsys.readouterr().err


def test_4_conflict_a_file_that_is_there_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "hotrefresh.toml").write_text("batch_size = 7\n")
    assert main(["init"]) == ExitCode.CONFLICT == 4
    assert (tmp_path / "hotrefresh.toml").read_text() == "batch_size = 7\n"
    assert "stays as it is" in capsys.readouterr().err


def test_5_not_certified(raising, capsys):
    assert raising(errors.NotCertifiedError("never measured")) == ExitCode.NOT_CERTIFIED == 5
    assert capsys.readouterr().err == "error: never measured\n"


def test_6_inconclusive(raising):
    assert raising(errors.InconclusiveError("36 queries count")) == ExitCode.INCONCLUSIVE == 6


def test_7_done_with_quarantined_items(raising):
    import typer

    assert raising(typer.Exit(ExitCode.QUARANTINED)) == ExitCode.QUARANTINED == 7


def test_8_unreachable_database(capsys):
    url = "postgresql://somebody:secret@127.0.0.1:1/nothing"
    assert main(["--database-url", url, "--broker-url", "redis://127.0.0.1:1/0", "gallery", "list"]) == 8
    said = capsys.readouterr().err
    assert ExitCode.UNREACHABLE == 8
    assert "does not answer" in said
    assert "secret" not in said


def test_9_wait_timed_out(raising):
    assert raising(errors.WaitTimeoutError("still backfilling; it goes on")) == ExitCode.WAIT_TIMED_OUT == 9


def test_130_interrupted_says_what_goes_on(raising, monkeypatch, capsys):
    from cli import watch

    def interrupted(**flags):
        watch.goes_on(7)
        raise KeyboardInterrupt

    monkeypatch.setattr(orchestrator.settings, "load_settings", interrupted)
    assert main(["config", "show"]) == ExitCode.INTERRUPTED == 130
    said = capsys.readouterr().err
    assert "Rollout 7 goes on in its workers" in said
    assert "hotrefresh rollout status -w 7" in said


def subclasses(kind):
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize(
    "kind", sorted(set(subclasses(errors.HotrefreshError)), key=lambda kind: kind.__name__)
)
def test_every_error_of_the_tree_has_an_exit_code_of_the_enum(kind):
    assert ExitCode(kind.exit_code) is not ExitCode.DONE
