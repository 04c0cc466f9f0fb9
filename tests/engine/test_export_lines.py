"""The lines of docs/FLIPS-AND-GATES.md that read an exported file, run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cli.main import main
from orchestrator.ledger.queries.reporting import read_view
from tests.engine import platform

PAGE = (Path(__file__).parents[2] / "docs" / "FLIPS-AND-GATES.md").read_text("utf-8")
EXPORT = re.search(r"^hotrefresh (ledger export flip_items .*)$", PAGE, re.MULTILINE)
READERS = dict(re.findall(r"^python -c '(import (\w+);.*)'$", PAGE, re.MULTILINE))


@pytest.fixture
def causes(context, environment, tmp_path, monkeypatch) -> Counter[str]:
    """How many flips of each cause are in the file that the documented command wrote into the working folder."""
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "poor", seed=0, kept=4)
    platform.certify_by_hand(context, "poor")
    row = platform.work(context, platform.start(context, "poor").id)
    monkeypatch.chdir(tmp_path)
    assert EXPORT
    assert main(shlex.split(EXPORT[1].replace("photos", "pics"))) == 0
    with context.engine.connect() as connection:
        flips = read_view(connection, "flip_items", rollout=row.id, limit=100_000)
    return Counter(flip["cause"] for flip in flips if flip["cause"])


@pytest.mark.parametrize("line", READERS, ids=READERS.get)
def test_the_documented_line_reads_the_exported_file(causes, line, tmp_path):
    package = READERS[line]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    done = subprocess.run(
        [sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert causes["model"] > 0
    for cause, count in causes.items():
        assert re.search(rf"\b{cause}\b\D+\b{count}\b", done.stdout), done.stdout


def test_both_readers_are_documented():
    assert set(READERS.values()) == {"duckdb", "pandas"}
