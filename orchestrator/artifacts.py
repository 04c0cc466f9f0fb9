"""Model artifacts in the store, so that workers on other hosts share nothing but database, broker and store.

The ledger holds each artifact's files with their sizes; what is fetched is verified by whoever loads it, against the
fingerprint in the ledger.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import numpy as np

from orchestrator.errors import ArtifactError
from orchestrator.store import create_folder, read_array, write_array

# A fingerprint is 64 hex digits; half of them name a folder.
NAME_DIGITS = 32


def folder_name(fingerprint: str) -> str:
    """The name of an artifact's folder, on a host and in the store."""
    return fingerprint[:NAME_DIGITS]


def publish(store_url: str, folder: Path, fingerprint: str) -> dict[str, int]:
    """Copy an artifact's files into the store; returns their names and sizes in bytes."""
    url = f"{store_url}/artifacts/{folder_name(fingerprint)}"
    create_folder(url)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    for name, path in files.items():
        write_array(url, name, np.fromfile(path, np.uint8))
    return {name: path.stat().st_size for name, path in files.items()}


def local_folder(
    uri: str, fingerprint: str, files: dict[str, int] | None, *, store_url: str, artifacts: Path
) -> Path:
    """Where an artifact lies on this host; fetched from the store where another host registered it.

    Args:
        uri: the folder on the host that registered it.
        files: as the ledger has them; None: registered before artifacts were published.

    Raises:
        ArtifactError: neither this host nor the store has it.
    """
    if Path(uri).is_dir():
        return Path(uri)
    folder = artifacts / folder_name(fingerprint)
    if folder.is_dir():
        return folder
    if not files:
        raise ArtifactError(
            f"the artifact {uri} is not on this host and not in the store; import it again, or set HOTREFRESH_MODEL_DIR."
        )
    partial = artifacts / f".partial-{secrets.token_hex(6)}"
    partial.mkdir(parents=True)
    try:
        for name, size in files.items():
            _plain_name(name)
            data = read_array(f"{store_url}/artifacts/{folder_name(fingerprint)}", name, np.uint8, size)
            (partial / name).write_bytes(data.tobytes())
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process of this host may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _plain_name(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ArtifactError(f"the ledger names {name!r} as a file of an artifact; that is no file name.")
