"""The part of the error tree that knows of rollouts; its root is `models.errors.HotrefreshError`.

HotrefreshError                 1    unexpected, or doctor found something
├── UsageError                  2    an argument or a configuration value cannot be used
├── NotFoundError               3    no gallery, model, query set or rollout of that name
├── ConflictError               4    wrong state, or somebody else is at it
│   └── StalePathError          4    a query was embedded for a model or adapter that no longer serves
├── NotCertifiedError           5    a gate failed, or the pair of models holds no valid certificate
├── InconclusiveError           6    a gate or a certificate could not be decided
├── UnreachableError            8    database, broker, index or store cannot be reached
│   └── StoreFullError          8    the disk under the extents is full
└── WaitTimeoutError            9    we stopped waiting; the rollout goes on
"""

from __future__ import annotations

from enum import IntEnum

from models.errors import ArtifactError, HotrefreshError, ItemError, UsageError


class ExitCode(IntEnum):
    """What a command's exit status says (CONVENTIONS: one enum, one test a code)."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    NOT_CERTIFIED = 5
    INCONCLUSIVE = 6
    QUARANTINED = 7
    UNREACHABLE = 8
    WAIT_TIMED_OUT = 9
    INTERRUPTED = 130


class NotFoundError(HotrefreshError):
    """Nothing of that name in the ledger."""

    code = "not_found"
    exit_code = ExitCode.NOT_FOUND


class ConflictError(HotrefreshError):
    """The thing is in a state that does not allow this, or is being changed by somebody else."""

    code = "conflict"
    exit_code = ExitCode.CONFLICT


class StalePathError(ConflictError):
    """A query was embedded for a model or an adapter that no longer serves: embed it again."""

    code = "stale_path"


class NotCertifiedError(HotrefreshError):
    """The pair of models may not be mixed in one search: refused or never measured."""

    code = "not_certified"
    exit_code = ExitCode.NOT_CERTIFIED


class InconclusiveError(HotrefreshError):
    """A gate or a certificate could not be decided: too few queries, or a value that is not a number."""

    code = "inconclusive"
    exit_code = ExitCode.INCONCLUSIVE


class UnreachableError(HotrefreshError):
    """Database, broker, index or store cannot be reached."""

    code = "unreachable"
    exit_code = ExitCode.UNREACHABLE


class StoreFullError(UnreachableError):
    """The disk under the extents is full."""

    code = "store_full"


class WaitTimeoutError(HotrefreshError):
    """The time given for waiting is over; the rollout goes on."""

    code = "wait_timed_out"
    exit_code = ExitCode.WAIT_TIMED_OUT


__all__ = [
    "ArtifactError",
    "ConflictError",
    "ExitCode",
    "HotrefreshError",
    "InconclusiveError",
    "ItemError",
    "NotCertifiedError",
    "NotFoundError",
    "StalePathError",
    "StoreFullError",
    "UnreachableError",
    "UsageError",
    "WaitTimeoutError",
]
