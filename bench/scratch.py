"""What the benchmarks stand on: a ledger database of their own and a folder on the data folder's disk; both are removed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.engine import URL

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.rows import ModelRow
from orchestrator.settings import Settings, load_settings

if TYPE_CHECKING:
    from models.encoders.images import ImagePreprocessing

SHOWN = ("server_version", "fsync", "synchronous_commit", "wal_sync_method", "full_page_writes", "wal_compression",
         "shared_buffers")  # fmt: skip

DEFAULTS = ("store_dir", "model_dir", "batch_size", "lease_s", "decode_threads")
"""Settings that are not whoever runs the benchmark's: figures must compare."""


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder inside the data folder, so on its disk."""
    inside = settings.data_dir.absolute()
    inside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=inside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_context(settings: Settings | None = None) -> Iterator[Context]:
    """A context on a new, migrated database of the configured (or embedded) server, and a new folder.

    Raises:
        UsageError: the role may not create a database.
    """
    settings = settings or load_settings()
    with (
        scratch_folder(settings) as folder,
        open_context(settings, migrate=False) as outer,
        _database(outer.engine.url) as url,
    ):
        own = {
            "database_url": url,
            "broker_url": outer.broker.url,
            "data_dir": folder,
            **{name: Settings.model_fields[name].default for name in DEFAULTS},
        }
        with open_context(settings.model_copy(update=own)) as context:
            yield context


@contextmanager
def _database(server: URL) -> Iterator[str]:
    """The URL of a new database beside the one of `server`, dropped at the end."""
    name = f"hotrefresh_bench_{os.getpid()}_{secrets.token_hex(3)}"
    plain = server.set(drivername="postgresql")
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as connection:
        try:
            connection.execute(f"CREATE DATABASE {name}")
        except psycopg.errors.InsufficientPrivilege as error:
            raise UsageError(
                f"the database role {server.username!r} may not create databases, and benchmarks measure in one of their "
                "own. Grant it CREATEDB, or unset HOTREFRESH_DATABASE_URL to use the embedded server."
            ) from error
        try:
            yield plain.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def another_context(context: Context) -> Context:
    """One more process's view of the same ledger: connections of its own, no model loaded yet."""
    return open_context(context.settings, migrate=False)


def database(context: Context) -> dict[str, Any]:
    """The server's settings that a commit's price hangs on, and whether it writes to the disk that we measure."""
    with context.engine.connect() as connection:
        shown = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in SHOWN}
    return {**shown, "same_disk": same_disk(context)}


def same_disk(context: Context) -> bool | None:
    """Whether the server's files lie on the data folder's file system; None where we cannot see them."""
    from sqlalchemy.exc import DBAPIError

    if context.engine.url.host not in ("localhost", "127.0.0.1", "::1", "", None):
        return None
    try:
        with context.engine.connect() as connection:
            folder = Path(connection.exec_driver_sql("SHOW data_directory").scalar_one())
        return folder.stat().st_dev == context.settings.data_dir.stat().st_dev
    except (DBAPIError, OSError):
        return None


def register_network(
    context: Context,
    name: str,
    architecture: str,
    options: dict[str, Any],
    seed: int,
    dim: int = 64,
    preprocessing: ImagePreprocessing | None = None,
) -> ModelRow:
    """An untrained image network as a registered model: what it finds does not matter here, only what it costs."""
    import torch

    from models.artifact import save_artifact
    from models.encoders import architecture_module
    from models.encoders.images import ImagePreprocessing
    from orchestrator.service import models

    preprocessing = preprocessing or ImagePreprocessing()
    torch.manual_seed(seed)
    network = architecture_module(architecture).build(options, dim, preprocessing)
    folder = context.settings.data_dir / f"artifact-{name}"
    save_artifact(
        folder,
        network.state_dict(),
        kind="encoder",
        name=name,
        architecture=architecture,
        options=options,
        modality="image",
        preprocessing=asdict(preprocessing),
        dim=dim,
    )
    return models.import_model(context, folder, name)
