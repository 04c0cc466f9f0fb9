"""What a registry of methods offers, by name: their modules, and what these make of artifacts."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.artifact import load_artifact
from models.errors import ArtifactError, UsageError


def module_of(method: str, kind: str, registry: Mapping[str, str]) -> Any:
    """The module of a method. `kind`: what it makes. Raises UsageError for an unknown one, naming those there are."""
    if method not in registry:
        raise UsageError(f"unknown {kind} {method!r}: choose one of {', '.join(registry)}")
    return importlib.import_module(registry[method])


def load_registered(folder: Path, kind: str, registry: Mapping[str, str]) -> Any:
    """What the `load(manifest, tensors)` of an artifact's module makes of it, verified.

    Args:
        kind: what the artifact must be, as its manifest says it.
        registry: architecture -> module.

    Raises ArtifactError as `load_artifact`, for another kind, an unknown architecture, or weights that do not fit it.
    """
    manifest, tensors = load_artifact(folder)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds {_a(manifest.kind)}, not {_a(kind)}: name the {kind}'s folder")
    if manifest.architecture not in registry:
        raise ArtifactError(f"unknown {kind} {manifest.architecture!r}: known are {', '.join(registry)}")
    module = importlib.import_module(registry[manifest.architecture])
    try:
        return module.load(manifest, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder} does not fit its {kind} {manifest.architecture!r}: {error}. Fit it again"
        ) from error


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
