"""What every verb works with: settings, the ledger's engine, the broker, the artifacts. Built by `bootstrap`."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from orchestrator.artifacts import local_folder
from orchestrator.errors import ArtifactError
from orchestrator.ledger.rows import AdapterRow, ModelRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from models.adapters import Adapter
    from models.encoders import Encoder
    from orchestrator.broker import Broker
    from orchestrator.settings import Settings


@dataclass
class Context:
    """The parts of one process; close it when done."""

    settings: Settings
    engine: Engine
    broker: Broker
    embedded: bool
    actor: str = field(default_factory=lambda: os.environ.get("HOTREFRESH_ACTOR") or _user())
    on_close: list[Callable[[], None]] = field(default_factory=list)
    _encoders: dict[int, Encoder] = field(default_factory=dict)
    _adapters: dict[int, Adapter] = field(default_factory=dict)

    def artifact(self, row: ModelRow | AdapterRow) -> Path:
        """The folder of a registered artifact on this host, not verified yet."""
        return local_folder(
            row.uri,
            row.fingerprint,
            row.files,
            store_url=self.settings.extents,
            artifacts=self.settings.artifacts,
        )

    def encoder(self, model: ModelRow) -> Encoder:
        """The model's encoder, loaded once a process and verified against the ledger's digest.

        Raises:
            ArtifactError: the artifact is missing, tampered with, or not the one that was registered.
        """
        if model.id not in self._encoders:
            from models.encoders import load_encoder

            # The fingerprint is compared before the artifact may call any code of a user.
            encoder = load_encoder(self.artifact(model), expected=model.fingerprint, own_code=True)
            self._encoders[model.id] = encoder
        return self._encoders[model.id]

    def prototypes(self, model: ModelRow) -> npt.NDArray[np.float32] | None:
        """The model's head, (C, dim) float32, L2-normalised; None where its artifact keeps none."""
        from models.training import load_prototypes

        self.encoder(model)  # verified
        try:
            return load_prototypes(self.artifact(model))[0]
        except ArtifactError:
            return None

    def adapter(self, row: AdapterRow) -> Adapter:
        """The adapter, loaded once a process and verified against the ledger's digest."""
        if row.id not in self._adapters:
            from models.adapters import load_adapter

            adapter = load_adapter(self.artifact(row))
            _same_digest(row.name, row.fingerprint, adapter.manifest.fingerprint, row.uri)
            self._adapters[row.id] = adapter
        return self._adapters[row.id]

    def close(self) -> None:
        """Give every connection back; stops embedded servers when nobody else uses them."""
        self.broker.close()
        self.engine.dispose()
        while self.on_close:
            self.on_close.pop()()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _same_digest(name: str, registered: str, found: str, uri: str) -> None:
    if registered != found:
        raise ArtifactError(
            f"the artifact of {name!r} in {uri} is not the one that was registered "
            f"(fingerprint {found[:12]} instead of {registered[:12]}); restore it, or import the new one under another name."
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
