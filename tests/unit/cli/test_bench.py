"""Benchmarks live in the source tree."""

from __future__ import annotations

import pytest

from cli import bench
from orchestrator.errors import NotFoundError


def test_benchmarks_are_found_by_their_run_function_without_importing_them(tmp_path):
    (tmp_path / "core.py").write_text('"""Rows of the core.\n\nMore."""\nraise SystemExit\ndef run(): ...\n')
    (tmp_path / "helper.py").write_text("x = 1\n")
    assert bench.benchmarks(tmp_path) == {"core": "Rows of the core."}


def test_an_installed_wheel_says_where_the_benchmarks_are(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "cli" / "bench.py"))
    with pytest.raises(NotFoundError, match="source tree"):
        bench.bench_folder()
