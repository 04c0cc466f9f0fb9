"""Ctrl-C: exit code 130, one sentence, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import galleries
from orchestrator.service.background import worker_environment
from tests.engine import platform
from tests.engine.test_worker_process import until


def hotrefresh(context, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from cli.main import main; sys.exit(main())", *words],
        env=worker_environment(context.settings) | {"PYTHONPATH": os.getcwd()},
        cwd=context.settings.data_dir,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def pictures(context, tmp_path):
    folder = platform.draw_pictures(tmp_path / "pictures")
    galleries.create_gallery(context, "pics", str(folder))
    platform.register_network(context, tmp_path, "old", seed=0)
    return folder


def test_waiting_for_an_embedding_can_be_left_and_the_work_goes_on(context, pictures):
    command = hotrefresh(context, "gallery", "embed", "pics", "--model", "old")

    def begun():
        with context.engine.connect() as connection:
            return len(read_view(connection, "rollout_status")) == 1

    until(begun)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130, said
    assert "goes on" in said
    assert "Traceback" not in said
    with context.engine.connect() as connection:
        rollout = read_view(connection, "rollout_status")[0]["id"]
    assert platform.work(context, rollout).state == "finalized"


def test_a_training_that_is_interrupted_leaves_no_model_and_no_file(context, pictures):
    command = hotrefresh(context, "model", "train", "new", "--data", str(pictures), "--epochs", "100000")
    assert command.stderr is not None
    assert "training" in command.stderr.readline()  # the first line of progress
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130, said
    assert [path.name for path in context.settings.artifacts.iterdir() if path.name.startswith(".")] == []
    listed = hotrefresh(context, "-q", "model", "list", "-o", "json")
    printed, _ = listed.communicate(timeout=60)
    assert '"old"' in printed
    assert '"new"' not in printed
