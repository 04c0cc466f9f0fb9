"""Fixtures of the fault suite: a small world on real servers, and a nursery for processes that will be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.context import Context
from tests.faults import world
from tests.faults.nursery import Nursery
from tests.faults.volume import FACTOR, ROOT, SEED


def pytest_configure(config: pytest.Config) -> None:
    """The marker of what only `make test-faults` runs."""
    config.addinivalue_line("markers", "faults: the long part of the fault suite, run by `make test-faults`")


def pytest_report_header() -> str:
    """What is needed to repeat a run."""
    return f"fault suite: volume {FACTOR:g}, seed {SEED}"


@pytest.fixture(autouse=True)
def _workers_find_our_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def platform(context: Context, tmp_path: Path) -> Context:
    """A context on a ledger with the small world in it."""
    world.build(context, tmp_path / "world")
    return context


@pytest.fixture
def nursery(platform: Context, tmp_path: Path) -> Iterator[Nursery]:
    """Forks children that work on the same ledger."""
    opened = Nursery(platform.settings, tmp_path / "children.log")
    yield opened
    opened.close()
