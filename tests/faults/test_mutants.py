"""The suite's own proof: with a guard taken out of a copy of the source, the tests that are there for it fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.volume import ROOT

COPIED = ("orchestrator", "workers", "models", "migrations", "cli", "bench", "tests")
TESTS_FAILED = 1


def copy_source(to: Path) -> Path:
    """A copy of the source tree in which something can be broken."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def run_tests(source: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy on the copy's code."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=120",
               f"--basetemp={source / 'temporary'}", *tests]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def mutated(mutant: Mutant, folder: Path) -> Path:
    """A copy with one mutant in it."""
    source = copy_source(folder)
    file = source / mutant.file
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    return source


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source(mutant: Mutant) -> None:
    assert mutant.old != mutant.new
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, "the list of mutants is stale"


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_every_mutant_is_caught(tmp_path: Path) -> None:
    tests = tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests))
    control = run_tests(copy_source(tmp_path / "control"), tests)
    assert control.returncode == 0, control.stdout[-3000:]

    def judge(numbered: tuple[int, Mutant]) -> str:
        number, mutant = numbered
        source = mutated(mutant, tmp_path / f"mutant-{number}")
        found = run_tests(source, mutant.tests)
        shutil.rmtree(source, ignore_errors=True)
        assert found.returncode in (0, TESTS_FAILED), found.stdout[-3000:]
        return "caught" if found.returncode == TESTS_FAILED else "survived"

    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip((m.name for m in MUTANTS), pool.map(judge, enumerate(MUTANTS)), strict=True))
    survived = [name for name, outcome in outcomes.items() if outcome == "survived"]
    report.record(
        report.Figures(
            "safety mutants",
            f"{len(MUTANTS)} of {len(MUTANTS)} caught",
            len(MUTANTS),
            met=not survived,
            detail=outcomes,
        )
    )
    assert not survived, f"nothing notices: {survived}"
