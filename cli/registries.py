"""Names of registries, for `--help`: read from their files, because importing them loads torch."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_MODELS = _ROOT / "models"


def method_names() -> list[str]:
    """The compatible-training methods."""
    return keys_of(_MODELS / "compat" / "__init__.py", "METHODS")


def adapter_names() -> list[str]:
    """The adapters."""
    return keys_of(_MODELS / "adapters" / "__init__.py", "ADAPTERS")


def codec_names() -> list[str]:
    """The codecs."""
    return keys_of(_MODELS / "codecs" / "__init__.py", "CODECS")


def index_backends() -> dict[str, str]:
    """The index backends, each with whether it is exact and what it is."""
    found = literal_of(_ROOT / "orchestrator" / "index" / "__init__.py", "BACKENDS")
    return {name: f"{exactness}, {what}" for name, (_, exactness, what) in found.items()}


def keys_of(path: Path, name: str) -> list[str]:
    """The keys of the dict that a file assigns to `name`."""
    return list(literal_of(path, name))


def literal_of(path: Path, name: str) -> dict[str, Any]:
    """The dict that a file assigns to `name`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value is not None:
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{path} assigns no {name}")
