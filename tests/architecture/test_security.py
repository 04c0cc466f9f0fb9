"""The built package holds no way to run code out of a file; `make audit` never calls fine what it could not check."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "workers", "models", "migrations", "cli")

# Dotted names as they stand after imports are resolved: `import torch as t; t.load` is torch.load.
BANNED = {
    "torch.load", "torch.save", "torch.hub", "torch.jit.load", "torch.package", "torch.serialization",
    "faiss.read_index", "faiss.deserialize_index", "faiss.read_VectorTransform", "faiss.read_index_binary",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all",
    "numpy.fromregex", "numpy.lib.format.read_array", "pandas.read_pickle", "os.system", "os.popen",
    "eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile", "__import__",
    "tempfile.mktemp", "shutil.unpack_archive", "tarfile", "telnetlib", "ftplib", "xml.sax",
}  # fmt: skip
BANNED_MODULES = {"pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm",
                  "jsonpickle", "hickle", "torch.package", "torch.hub", "transformers"}  # fmt: skip
BANNED_KEYWORDS = {
    ("allow_pickle", True),
    ("trust_remote_code", True),
    ("shell", True),
    ("weights_only", False),
}
# `numpy.load` unpickles only where it is told to; it must say that it does not.
MUST_SAY = {"numpy.load": ("allow_pickle", False)}


class Finder(ast.NodeVisitor):
    """What a module uses that is banned, whatever name it was imported under."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.found: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._module(alias.name)
            self.names[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._module(node.module or "")
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self._module(dotted)
            self._name(dotted)
            self.names[alias.asname or alias.name] = dotted

    def visit_Name(self, node: ast.Name) -> None:
        self._name(self.names.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._name(self._dotted(node))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value in BANNED_MODULES:
            self.found.append(f"the module name {node.value!r} in a string")

    def visit_Call(self, node: ast.Call) -> None:
        said = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
        self.found += [f"{name}={value}" for name, value in said & BANNED_KEYWORDS]
        dotted = self._dotted(node.func)
        if dotted in MUST_SAY and MUST_SAY[dotted] not in said:
            self.found.append(f"{dotted} without allow_pickle=False")
        if dotted == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            self._name(f"{self._dotted(node.args[0])}.{node.args[1].value}")
        self.generic_visit(node)

    def _dotted(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        return "?"

    def _name(self, dotted: str) -> None:
        if dotted in BANNED:
            self.found.append(dotted)

    def _module(self, name: str) -> None:
        parts = name.split(".")
        if any(".".join(parts[:end]) in BANNED_MODULES | BANNED for end in range(1, len(parts) + 1)):
            self.found.append(f"import {name}")


def banned_in(source: str) -> list[str]:
    """Every banned thing that a module uses."""
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it ships, built out of a copy: a build folder of yesterday must not get in."""
    place = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place / "source" / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", str(place), str(place / "source")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return next(place.glob("hotrefresh-*.whl"))


def test_the_built_package_holds_nothing_that_runs_code_out_of_a_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modules = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    assert {name.split("/")[0] for name in modules} == set(PACKAGES)
    assert len(modules) > 120
    found = {(name, what) for name, source in modules.items() for what in banned_in(source)}
    assert found == set()


def test_the_built_package_ships_sources_and_texts_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        endings = {
            Path(name).suffix for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")
        }
    assert endings <= {".py", ".sql", ".typed", ".mako", ".css", ".html", ".js", ".svg"}


def test_the_built_package_ships_every_page_of_the_dashboard(wheel):
    folder = ROOT / "orchestrator" / "dashboard"
    files = {
        path.relative_to(ROOT).as_posix()
        for part in ("templates", "static")
        for path in (folder / part).iterdir()
    }
    assert len(files) > 12
    with zipfile.ZipFile(wheel) as archive:
        assert files - set(archive.namelist()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as fine",
        "import torch as t\nt.load('x')",
        "from torch import load as fine\nfine('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from faiss import read_index",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "import torch\ngetattr(torch, 'load')('x')",
        "import importlib\nimportlib.import_module('pickle')",
        "make(trust_remote_code=True)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import torch.hub",
        "def f():\n    from joblib import load",
    ],
)
def test_what_is_banned_is_found_under_any_name(source):
    assert banned_in(source) != []


def test_what_is_allowed_is_not_found():
    fine = "import numpy as np, yaml, json\nnp.load(p, allow_pickle=False)\nyaml.safe_load(t)\nmodel.eval()\n"
    assert banned_in(fine + "re.compile('x')\njson.load(f)") == []


def test_ruff_bans_the_same_loaders(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text("import pickle\nimport torch\nimport faiss\ntorch.load('x')\nfaiss.read_index('x')\n")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--output-format", "concise",
         "--select", "TID251", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert [line.split("`")[1] for line in done.stdout.splitlines() if "TID251" in line] == [
        "pickle", "torch.load", "faiss.read_index",
    ]  # fmt: skip


# -- the audit -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit() -> Iterator[object]:
    spec = importlib.util.spec_from_file_location("hotrefresh_audit", ROOT / "tools" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


TODAY = date(2026, 11, 23)
WEAK = {
    "dependencies": [
        {"name": "jinja2", "version": "2.10", "vulns": [
            {"id": "PYSEC-1", "aliases": ["CVE-2019-10906"], "fix_versions": ["2.10.1"]}]},
        {"name": "numpy", "version": "2.0", "vulns": []},
        {"name": "own", "skip_reason": "Dependency not found on PyPI"},
    ]
}  # fmt: skip


def test_a_finding_fails_the_audit_and_says_what_to_do(audit):
    code, said = audit.judge(audit.parse(WEAK), [], TODAY)
    assert code == 1
    assert "FOUND: jinja2 2.10: PYSEC-1, CVE-2019-10906; take 2.10.1" in said[0]
    assert said[-2:] == [
        "2 packages looked up, 1 findings",
        "not checked, the service does not know them: own",
    ]


def test_a_finding_that_was_accepted_passes_until_its_date_is_old(audit):
    entry = {
        "id": "CVE-2019-10906",
        "package": "jinja2",
        "reason": "no templates of strangers",
        "date": TODAY,
    }
    assert audit.judge(audit.parse(WEAK), [entry], TODAY)[0] == 0
    code, said = audit.judge(audit.parse(WEAK), [entry | {"date": TODAY - timedelta(91)}], TODAY)
    assert code == 1
    assert "look again" in said[0]
    assert audit.judge(audit.parse(WEAK), [{"id": "CVE-2019-10906"}], TODAY)[0] == 1


@pytest.mark.parametrize(
    "answer", [None, {"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI"}]}]
)
def test_an_audit_that_reached_nobody_says_so_and_does_not_say_that_all_is_well(audit, answer):
    """pip-audit itself says "No known vulnerabilities found" of packages that it could not look up."""
    code, said = audit.judge(answer and audit.parse(answer), [], TODAY)
    assert (code, said[0].startswith(audit.NOT_CHECKED)) == (0, True)
    assert "0 findings" not in " ".join(said)


def test_every_accepted_finding_has_a_reason_and_a_date_that_is_not_old(audit):
    import tomllib

    accepted = tomllib.loads(audit.ACCEPTED.read_text())["ignore"]
    assert audit.faults(accepted, date.today()) == []


# -- the lock --------------------------------------------------------------------------------------------------------------


def pins(path: Path) -> dict[str, str]:
    """Package → version of every pin in a requirements file; names in one spelling."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", path.read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_the_pins_that_were_tested_together_and_a_hash_for_each():
    locked, tested = pins(ROOT / "requirements.lock"), pins(ROOT / "constraints.txt")
    assert len(locked) >= len(tested) > 100
    assert {name: version for name, version in tested.items() if locked.get(name) != version} == {}
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text(), flags=re.M)[1:]
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"index-url|find-links|https?://|file:", "".join(entries))
