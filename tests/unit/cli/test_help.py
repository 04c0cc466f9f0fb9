"""Every command explains itself."""

from __future__ import annotations

import pytest
import typer.main

from cli.main import app, main


def commands(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_command_has_help_and_an_example_that_names_it(path):
    command = COMMANDS[path]
    assert command.help
    assert len(command.help.splitlines()[0]) > 20
    assert (command.epilog or "").startswith(f"Example: hotrefresh {' '.join(path)}")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_command_takes_an_output_format_and_every_option_is_explained(path):
    options = {name: parameter for parameter in COMMANDS[path].params for name in parameter.opts}
    assert "-o" in options
    unexplained = [name for name, parameter in options.items() if not getattr(parameter, "help", None)]
    assert unexplained == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_printed_with_exit_code_0(path, capsys):
    assert main([*path, "--help"]) == 0
    assert f"Example: hotrefresh {' '.join(path)}" in " ".join(capsys.readouterr().out.split())


def test_destructive_commands_can_be_told_not_to_ask():
    for path in (("db", "downgrade"), ("rollout", "cancel"), ("rollout", "rollback")):
        assert any("--yes" in parameter.opts for parameter in COMMANDS[path].params), path


def test_the_names_people_try_lead_to_the_same_verbs_and_stay_hidden():
    for alias, verb in {"abort": "cancel", "undo": "rollback"}.items():
        assert COMMANDS["rollout", alias].hidden
        assert (
            COMMANDS["rollout", alias].callback.__wrapped__ is COMMANDS["rollout", verb].callback.__wrapped__
        )


def test_the_design_s_commands_are_there():
    wanted = {
        "model": "list show import train adapt adapt-encoder certify verify",
        "downstream": "register train list show certify retire",
        "gallery": "create list show embed search",
        "queryset": "import list show",
        "rollout": "plan start status list pause resume cancel finalize rollback history get",
        "ledger": "flips versions curve errors audit gates export",
        "db": "upgrade current downgrade",
        "config": "show",
    }
    for group, verbs in wanted.items():
        for verb in verbs.split():
            assert (group, verb) in COMMANDS
    for name in ["demo", "init", "doctor", "worker", "serve", "dashboard", "bench", "version"]:
        assert (name,) in COMMANDS
