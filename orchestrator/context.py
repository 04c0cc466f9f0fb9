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
from orchestrator.ledger.queries.models import model_by_id
from orchestrator.ledger.rows import AdapterRow, ModelRow, ModuleRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from models.adapters import Adapter
    from models.codecs import Codec
    from models.downstream import ClassificationHead, TextTower
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
    _codecs: dict[int, Codec] = field(default_factory=dict)

    def artifact(self, row: ModelRow | AdapterRow | ModuleRow) -> Path:
        """The folder of a registered artifact on this host, not verified yet."""
        return local_folder(
            row.uri,
            row.fingerprint,
            row.files,
            store_url=self.settings.extents,
            artifacts=self.settings.artifacts,
        )

    def encoder(self, model: ModelRow) -> Encoder:
        """The model's encoder, loaded once a process and verified against the ledger's digest; of a codec, its base model's
        with the codec behind it.

        Raises:
            ArtifactError: the artifact is missing, tampered with, or not the one that was registered.
        """
        if model.id not in self._encoders and model.base_model_id is not None:
            from models.codecs.coded import CodedEncoder

            self._encoders[model.id] = CodedEncoder(self.encoder(self.base_of(model)), self.codec(model))
        if model.id not in self._encoders:
            from models.encoders import load_encoder

            # The fingerprint is compared before the artifact may call any code of a user.
            encoder = load_encoder(self.artifact(model), expected=model.fingerprint, own_code=True)
            self._encoders[model.id] = encoder
        return self._encoders[model.id]

    def base_of(self, model: ModelRow) -> ModelRow:
        """The model whose embeddings a codec encodes; any other model itself."""
        if model.base_model_id is None:
            return model
        with self.engine.connect() as connection:
            return model_by_id(connection, model.base_model_id)

    def codec(self, model: ModelRow) -> Codec:
        """The codec of a model that is one, loaded once a process and verified against the ledger's digest."""
        assert model.base_model_id is not None, f"{model.name} is no codec"
        if model.id not in self._codecs:
            from models.codecs import load_codec

            codec = load_codec(self.artifact(model))
            _same_digest(model.name, model.fingerprint, codec.manifest.fingerprint, model.uri)
            self._codecs[model.id] = codec
        return self._codecs[model.id]

    def prototypes(self, model: ModelRow) -> npt.NDArray[np.float32] | None:
        """The model's head, (C, dim) float32, L2-normalised; None where its artifact keeps none, as a codec's."""
        from models.training import load_prototypes

        if model.base_model_id is not None:
            return None

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

    def module(self, row: ModuleRow) -> ClassificationHead | TextTower:
        """The downstream module, read and verified against the ledger's digest at each call: a contract is about its bytes."""
        from models import downstream

        return downstream.load(self.artifact(row), expected=row.fingerprint)

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
