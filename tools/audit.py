"""`make audit`: known weaknesses of what constraints.txt pins, by pip-audit, and a list of parts (SBOM) by cyclonedx.

pip-audit takes a package that its service does not know, or cannot answer for, as free of findings. So what it did not check is
counted here: "no known weakness" is said only of packages that were really looked up.
Exit code: 0 nothing found or not checked (which it says), 1 a finding that nobody accepted, or an acceptance out of date.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "tools" / "audit-ignore.toml"
SBOM = ROOT / "reports" / "sbom.json"
LOOK_AGAIN_DAYS = 90
TIMEOUT_S = 300
NOT_CHECKED = "not checked: the advisory service cannot be reached"


@dataclass(frozen=True)
class Finding:
    """One known weakness of one pinned package."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What pip-audit found, how many packages it looked up, and those it could not."""

    findings: tuple[Finding, ...]
    checked: int
    skipped: tuple[str, ...]


def parse(document: dict[str, Any]) -> Answer:
    """pip-audit's JSON. A package with a `skip_reason` was not looked up."""
    packages = document["dependencies"]
    skipped = tuple(each["name"] for each in packages if "skip_reason" in each)
    findings = tuple(
        Finding(
            each["name"],
            each["version"],
            (found["id"], *found.get("aliases", ())),
            tuple(found["fix_versions"]),
        )
        for each in packages
        for found in each.get("vulns", ())
    )
    return Answer(findings, len(packages) - len(skipped), skipped)


def ask() -> Answer | None:
    """Let pip-audit look up every pin; None where it gets no answer at all."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip",
               "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return parse(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def faults(accepted: list[dict[str, Any]], today: date) -> list[str]:
    """What is wrong with the list of accepted findings."""
    found = []
    for entry in accepted:
        missing = {"id", "package", "reason", "date"} - set(entry)
        if missing:
            found.append(f"an entry of {ACCEPTED.name} lacks {', '.join(sorted(missing))}: add it")
        elif (today - entry["date"]).days > LOOK_AGAIN_DAYS:
            found.append(
                f"{entry['id']} ({entry['package']}) was accepted on {entry['date']}: look again, then renew the date"
            )
    return found


def judge(answer: Answer | None, accepted: list[dict[str, Any]], today: date) -> tuple[int, list[str]]:
    """(exit code, what to say)."""
    said = faults(accepted, today)
    code = 1 if said else 0
    if answer is None or answer.checked == 0:
        return code, [*said, f"{NOT_CHECKED}; run `make audit` where it can"]
    known = {(entry.get("package"), entry.get("id")) for entry in accepted}
    for finding in answer.findings:
        line = f"{finding.package} {finding.version}: {', '.join(finding.ids)}"
        if any((finding.package, each) in known for each in finding.ids):
            said.append(f"accepted: {line}")
            continue
        code = 1
        remedy = (
            f"take {' or '.join(finding.fixed_in)}" if finding.fixed_in else "there is no mended version yet"
        )
        said.append(f"FOUND: {line}; {remedy}, or accept it with a reason in tools/{ACCEPTED.name}")
    said.append(f"{answer.checked} packages looked up, {len(answer.findings)} findings")
    if answer.skipped:
        said.append(f"not checked, the service does not know them: {', '.join(answer.skipped)}")
    return code, said


def write_sbom() -> str:
    """The parts of this environment in CycloneDX's form; returns a sentence."""
    SBOM.parent.mkdir(exist_ok=True)
    (SBOM.parent / ".gitignore").write_text("*\n")
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"),
               "--output-reproducible", "--of", "JSON", "-o", str(SBOM), sys.prefix]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        return f"no list of parts was written: {done.stderr.strip().splitlines()[-1:]}"
    parts = len(json.loads(SBOM.read_text())["components"])
    return f"{SBOM.relative_to(ROOT)}: {parts} parts"


def main() -> int:
    """Ask, judge, write the list of parts."""
    accepted = tomllib.loads(ACCEPTED.read_text())["ignore"]
    code, said = judge(ask(), accepted, date.today())
    print("\n".join([*said, write_sbom()]))
    return code


if __name__ == "__main__":
    sys.exit(main())
