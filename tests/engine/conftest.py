"""Commands against the ledger of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.main import main
from orchestrator.service import background
from orchestrator.settings import Settings


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, in this process and in others, find the test's ledger by their environment."""
    for name, value in background.worker_environment(settings).items():
        if name.startswith("HOTREFRESH_"):
            monkeypatch.setenv(name, value)


@pytest.fixture
def hotrefresh(
    environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command against this test's ledger, in the test's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
