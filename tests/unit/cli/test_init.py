"""The configuration file that `init` writes."""

from __future__ import annotations

import tomllib

from cli.init import configuration_text
from cli.main import main
from orchestrator.settings import Settings, load_settings


def test_the_file_names_every_setting_and_changes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--quiet", "init"]) == 0
    assert tomllib.loads((tmp_path / "hotrefresh.toml").read_text()) == {}
    assert load_settings() == Settings()


def test_the_defaults_in_the_file_are_the_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("# ") for line in configuration_text().splitlines() if " = " in line]
    values = tomllib.loads("\n".join(line for line in lines if '"…"' not in line))
    assert Settings(**values) == Settings()
    assert {line.split(" = ")[0] for line in lines} == set(Settings.model_fields)


def test_config_show_says_where_a_value_comes_from_and_masks_passwords(tmp_path, monkeypatch, capsys):
    import json

    monkeypatch.chdir(tmp_path)
    (tmp_path / "hotrefresh.toml").write_text("lease_s = 12.5\n")
    monkeypatch.setenv("HOTREFRESH_DATABASE_URL", "postgresql://me:secret@host/db")
    assert main(["--data-dir", "here", "config", "show", "-o", "json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["settings"] == {
        "database_url": "postgresql://me:***@host/db",
        "data_dir": "here",
        "lease_s": 12.5,
    }
    assert found["origins"] == {
        "database_url": "environment",
        "data_dir": "flag",
        "lease_s": "hotrefresh.toml",
    }
    assert "secret" not in said.out + said.err
