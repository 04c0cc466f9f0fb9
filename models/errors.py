"""The root of hotrefresh's one error tree, and what can be wrong with models, artifacts and items.

HotrefreshError                 exit 1
├── UsageError                  exit 2   an argument or a configuration value cannot be used
├── ArtifactError               exit 1   a model file is missing, tampered with or of an unknown format
├── ItemError                   --       one item cannot be read: quarantined with its reason, never fatal
└── (orchestrator.errors extends the tree: not found, conflicts, certificates, unreachable parts …)

A message says what was wrong, with which value, and what to do next.
"""

from __future__ import annotations


class HotrefreshError(Exception):
    """Something a user can understand and act on; shown without a traceback."""

    code: str = "error"
    exit_code: int = 1


class UsageError(HotrefreshError):
    """An argument or a configuration value cannot be used."""

    code = "usage"
    exit_code = 2


class ArtifactError(HotrefreshError):
    """A model artifact is missing, does not match its digest, or has an unknown format."""

    code = "artifact"


class ItemError(HotrefreshError):
    """One item cannot be read or embedded. `reason` is a short stable word for counting (missing, corrupt …)."""

    code = "item"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
