"""README says what is there: its ten commands are the example's, its links lead somewhere, its targets exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands(text: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("hotrefresh ")]


def test_the_ten_commands_are_those_of_the_example():
    section = README.partition("## Your own gallery in ten commands")[2].partition("\n## ")[0]
    shown = commands(section)
    assert len(shown) == 10
    assert shown == commands((ROOT / "examples" / "02_ten_commands.sh").read_text())


def test_every_relative_link_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"demo", "test"} <= named
    assert named - targets == set()


@pytest.mark.parametrize("line", sorted(set(commands(README))))
def test_every_command_of_the_readme_is_one_that_exists(line):
    words = [word for word in line.split()[1:] if re.fullmatch(r"[a-z]+", word)][:2]
    group = (
        words
        if line.split()[1] in ("codec", "gallery", "ledger", "model", "queryset", "rollout")
        else words[:1]
    )
    done = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", *group, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    options = re.findall(r" (--[a-z-]+)", line)
    assert [option for option in options if option not in done.stdout] == []


def test_the_example_writes_enough_pictures_and_queries(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "01_make_pictures.py")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    pictures, queries = (list((tmp_path / name).rglob("*.png")) for name in ("pictures", "queries"))
    assert len(pictures) >= 500
    assert len(queries) >= 100
    assert {p.parent.name for p in queries} <= {p.parent.name for p in pictures}
