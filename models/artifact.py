"""A model on disk: `weights.safetensors` beside `manifest.json`, verified on the very bytes that are parsed.

There are no pickles: a manifest is JSON with a schema version, weights are safetensors. An artifact is written to a
temporary folder beside its place, flushed, and renamed, so a half-written one is never found under its name.

Reading trusts nothing: both files are opened once, below one descriptor of their folder, without following links; sizes,
the header and the number of tensors are checked before anything is parsed; what is hashed is what is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ArtifactError
from models.plain_file import open_plain, read_capped

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"

MANIFEST_CAP_BYTES = 2**20
WEIGHTS_CAP_BYTES = 8 * 2**30
HEADER_CAP_BYTES = 4 * 2**20
MAX_TENSORS = 10_000
_KINDS = ("encoder", "adapter", "codec", "downstream")
_MODALITIES = ("image", "text", "video")


@dataclass(frozen=True)
class Manifest:
    """What is known about a model without reading its weights.

    Attributes:
        kind: "encoder", "adapter", "codec" or "downstream" (a frozen module that takes embeddings).
        name: what a person calls it; no part of its identity.
        architecture: name in the registry of encoders or adapters.
        options: the constructor's arguments, JSON values.
        modality: "image", "text" or "video".
        preprocessing: how an item becomes the network's input, JSON values.
        dim: length of the vectors it returns.
        normalisation: "l2".
        digest: sha256, hex, of the weights file.
        training: method, seed, classes, seconds …: for people, no part of its identity.
        schema_version: of this file's format.
    """

    kind: str
    name: str
    architecture: str
    options: Mapping[str, Any]
    modality: str
    preprocessing: Mapping[str, Any]
    dim: int
    normalisation: str = "l2"
    digest: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256, hex: the space of this model's vectors. Same fingerprint = vectors may be compared."""
        identity = {
            "digest": self.digest,
            "architecture": self.architecture,
            "options": self.options,
            "preprocessing": self.preprocessing,
            "dim": self.dim,
            "normalisation": self.normalisation,
        }
        return hashlib.sha256(_canonical(identity)).hexdigest()


def save_artifact(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    name: str,
    architecture: str,
    options: Mapping[str, Any],
    modality: str,
    preprocessing: Mapping[str, Any],
    dim: int,
    training: Mapping[str, Any] | None = None,
    normalisation: str = "l2",
) -> Manifest:
    """Writes an artifact to `folder` in one step, replacing what stood there, and returns its manifest.

    Raises ArtifactError when the folder exists and is no artifact, or when it cannot be written (full disk, rights).
    """
    from safetensors.torch import save

    weights = save({key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()})
    manifest = Manifest(
        kind=kind,
        name=name,
        architecture=architecture,
        options=dict(options),
        modality=modality,
        preprocessing=dict(preprocessing),
        dim=dim,
        normalisation=normalisation,
        digest=hashlib.sha256(weights).hexdigest(),
        training=dict(training or {}),
    )
    text = json.dumps(asdict(manifest), indent=2, sort_keys=True).encode() + b"\n"
    _check_values(manifest, folder)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
        raise ArtifactError(f"{folder} exists and is no model artifact: choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write_folder(folder, {WEIGHTS_FILE: weights, MANIFEST_FILE: text})
    except OSError as error:
        raise ArtifactError(
            f"the model could not be written to {folder}: {error}. Free space or choose another folder"
        ) from error
    return manifest


def load_artifact(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Reads and verifies an artifact: (manifest, tensors by name).

    The weights are read once; the bytes that were hashed are the bytes that are parsed.
    Raises ArtifactError: missing, a link, too large, unknown schema, a manifest that cannot be used, digest mismatch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    manifest, weights = _read_verified(folder)
    try:
        return manifest, load(weights)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{Path(folder) / WEIGHTS_FILE} is no safetensors file: {error}") from error


def load_manifest(folder: Path) -> Manifest:
    """The manifest alone, its weights unread and unverified. Raises ArtifactError as `load_artifact`."""
    with _opened(folder) as descriptor:
        return _parse_manifest(_read(folder, descriptor, MANIFEST_FILE, MANIFEST_CAP_BYTES), folder)


def copy_artifact(folder: Path, target: Path) -> Manifest:
    """Write a verified artifact's two files to `target`, and nothing else that lies beside them.

    Raises ArtifactError as `load_artifact`, or when `target` cannot be written.
    """
    manifest, weights = _read_verified(folder)
    text = json.dumps(asdict(manifest), indent=2, sort_keys=True).encode() + b"\n"
    try:
        _write_folder(Path(target), {WEIGHTS_FILE: weights, MANIFEST_FILE: text})
    except OSError as error:
        raise ArtifactError(
            f"the model could not be copied to {target}: {error}. Free space or choose another folder"
        ) from error
    return manifest


def _read_verified(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest, and the weights' bytes with the digest that it names; both out of one and the same folder."""
    with _opened(folder) as descriptor:
        manifest = _parse_manifest(_read(folder, descriptor, MANIFEST_FILE, MANIFEST_CAP_BYTES), folder)
        weights = _read(folder, descriptor, WEIGHTS_FILE, WEIGHTS_CAP_BYTES)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != manifest.digest:
        raise ArtifactError(
            f"{Path(folder) / WEIGHTS_FILE} does not match its manifest: sha256 {digest[:12]}…, "
            f"expected {manifest.digest[:12]}…. The artifact was changed or damaged: restore it or train it again"
        )
    check_header(weights, Path(folder) / WEIGHTS_FILE)
    return manifest, weights


def check_header(weights: bytes, path: Path) -> None:
    """Raise ArtifactError unless the bytes begin with a safetensors header of sane size and number of tensors."""
    length = int.from_bytes(weights[:8], "little")
    if len(weights) < 8 or length > len(weights) - 8:
        raise ArtifactError(
            f"{path} is no safetensors file: its header is cut off. Restore the artifact or train it again"
        )
    if length > HEADER_CAP_BYTES:
        raise ArtifactError(
            f"{path} has a header of {length} bytes; the limit is {HEADER_CAP_BYTES}. It was not read"
        )
    header = _json_object(weights[8 : 8 + length], path)
    if len(header) > MAX_TENSORS:
        raise ArtifactError(f"{path} has {len(header)} tensors; the limit is {MAX_TENSORS}. It was not read")


def _parse_manifest(content: bytes, folder: Path) -> Manifest:
    path = Path(folder) / MANIFEST_FILE
    values = _json_object(content, path)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise ArtifactError(
            f"{path} has schema version {str(version)[:40]!r}, this program reads {SCHEMA_VERSION}: "
            "use the version of hotrefresh that wrote it, or train the model again"
        )
    known = {one.name for one in fields(Manifest)}
    if set(values) != known:
        odd = ", ".join(sorted(set(values) ^ known))[:200]
        raise ArtifactError(f"{path} has missing or unknown fields ({odd}): restore it or train it again")
    manifest = Manifest(**values)
    _check_values(manifest, path)
    return manifest


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object in which no name comes twice: of two equal names, two readers may take different ones."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    try:
        values = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no JSON: {error}. Restore the artifact or train it again") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no JSON object. Restore the artifact or train it again")
    return values


def _check_values(manifest: Manifest, path: Path) -> None:
    def must(good: bool, what: str, value: object) -> None:
        if not good:
            shown = repr(value)[:200]
            raise ArtifactError(f"{path}: {what} cannot be {shown}: restore the artifact or train it again")

    must(manifest.kind in _KINDS, "kind", manifest.kind)
    must(manifest.modality in _MODALITIES, "modality", manifest.modality)
    must(manifest.normalisation == "l2", "normalisation", manifest.normalisation)
    must(type(manifest.dim) is int and 0 < manifest.dim <= 2**16, "dim", manifest.dim)
    must(isinstance(manifest.digest, str), "digest", manifest.digest)
    for what in ("name", "architecture"):
        value = getattr(manifest, what)
        must(isinstance(value, str) and bool(value), what, value)
    for what in ("options", "preprocessing", "training"):
        must(isinstance(getattr(manifest, what), dict), what, getattr(manifest, what))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Descriptor of an artifact's folder: both files come out of it, even if its name is given to another one."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"no model artifact at {folder}: {reason}. Name the folder of one") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: Path, descriptor: int, name: str, cap_bytes: int) -> bytes:
    try:
        with open_plain(name, cap_bytes, folder=descriptor, follow=False) as file:
            return read_capped(file, cap_bytes)
    except OSError as error:
        raise ArtifactError(f"no model artifact at {folder}: {error.strerror} ({name})") from error


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """All files or none: a temporary folder beside `folder`, flushed, then renamed over it."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _replace(temporary, folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    # A folder cannot be renamed over a full one: the old one steps aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    folder.rename(aside / "old")
    temporary.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=dict).encode()
