"""Rules of the house that a linter cannot say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "workers", "models", "migrations", "cli")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
UNSAFE = re.compile(
    r"torch\.load\(|import (pickle|joblib|dill)|allow_pickle\s*=\s*True|trust_remote_code|yaml\.load\(|(?<![.\w])(eval|exec)\("
)
STATEMENT = re.compile(
    r"^\s*(/\*.*\*/)?\s*(SELECT\s+\S+.*\bFROM\b|INSERT INTO|UPDATE \w+ SET|DELETE FROM|CREATE TABLE)", re.S
)


def strings(path: Path) -> list[str]:
    """String constants that are no docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    return [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in documentation
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_is_loaded_or_evaluated(path):
    assert [match.group() for match in UNSAFE.finditer(path.read_text())] == []


def test_sql_stands_in_the_ledger_and_in_migrations_only():
    allowed = (
        ROOT / "orchestrator" / "ledger",
        ROOT / "migrations",
        ROOT / "orchestrator" / "embedded",
        # SQL is what this vector database speaks; nothing of the ledger is in it.
        ROOT / "orchestrator" / "index" / "pgvector.py",
    )
    offenders = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not any(path.is_relative_to(folder) for folder in allowed)
        and any(STATEMENT.match(text) for text in strings(path))
    ]
    assert offenders == []


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 420}
    assert long == {}


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cli.main; "
        "print([m for m in ('torch', 'faiss', 'matplotlib', 'sqlalchemy', 'celery', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_no_other_installed_distribution_owns_our_package_names():
    owners = packages_distributions()
    assert {name: set(owners.get(name, [])) - {"hotrefresh"} for name in PACKAGES} == {
        name: set() for name in PACKAGES
    }


def test_no_module_is_named_after_the_standard_library_or_a_dependency():
    taken = set(sys.stdlib_module_names) | {
        "torch",
        "faiss",
        "celery",
        "redis",
        "sqlalchemy",
        "alembic",
        "typer",
        "numpy",
    }
    assert sorted(taken & set(PACKAGES)) == []


def test_every_task_name_carries_the_projects_name():
    from orchestrator.broker import TASKS, make_app

    assert 'name=f"hotrefresh.{name}"' in (ROOT / "workers" / "app.py").read_text()
    assert set(TASKS) == {"deploy", "plan", "drain", "evaluate", "finalize", "sweep"}
    assert not [name for name in make_app("redis://x").tasks if name.startswith("hotrefresh.")]


def test_a_lane_is_more_urgent_on_every_broker_whichever_end_is_first():
    from orchestrator.broker import LANES, broker_priority

    ordered = sorted(LANES, key=LANES.__getitem__)
    redis = [broker_priority(lane, "redis://x") for lane in ordered]
    rabbit = [broker_priority(lane, "amqp://x") for lane in ordered]
    assert redis == sorted(redis)
    assert rabbit == sorted(rabbit, reverse=True)
    assert len(set(redis)) == len(LANES)


def test_the_clock_of_the_database_alone_decides_so_a_skewed_host_does_not_matter():
    """No wall clock of a process in the engine: monotonic time for what a process measures itself, SQL for all else."""
    wall = re.compile(r"\btime\.time\(|datetime\.(now|utcnow|today)\(|\btime_ns\(")
    allowed = {
        "workers/log.py",  # what a log line shows
        "orchestrator/api/log.py",  # likewise
        "orchestrator/api/metrics.py",  # how long a rollout has been active: shown, not decided upon
        "orchestrator/dashboard/site.py",  # how long ago something was: likewise
        "orchestrator/serving/shadow.py",  # when a sample was taken: likewise
        "orchestrator/throttles/monitor.py",  # hours of the day, handed in as a clock
        "orchestrator/service/plan_preview.py",  # a row that is never written
    }
    files = [path for folder in ("orchestrator", "workers") for path in (ROOT / folder).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "demo" not in path.parts and wall.search(path.read_text())
    }
    assert found <= allowed
