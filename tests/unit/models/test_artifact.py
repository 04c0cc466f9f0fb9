import dataclasses
import hashlib
import json

import pytest
import torch

from models.artifact import MANIFEST_FILE, WEIGHTS_FILE, Manifest, load_artifact, load_manifest, save_artifact
from models.errors import ArtifactError


def write(folder, **changes):
    values = {
        "kind": "encoder",
        "name": "a",
        "architecture": "convnet",
        "options": {"widths": [8]},
        "modality": "image",
        "preprocessing": {"size": 8},
        "dim": 4,
        "training": {"seed": 1},
    }
    tensors = changes.pop("tensors", {"w": torch.arange(6.0).view(2, 3)})
    return save_artifact(folder, tensors, **{**values, **changes})


def test_what_is_saved_is_loaded_again(tmp_path):
    manifest = write(tmp_path / "m")
    loaded, tensors = load_artifact(tmp_path / "m")
    assert loaded == manifest
    assert loaded.fingerprint == manifest.fingerprint
    assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"widths": [16]}},
        {"preprocessing": {"size": 16}},
        {"dim": 8},
        {"tensors": {"w": torch.zeros(2, 3)}},
    ],
    ids=["options", "preprocessing", "dim", "weights"],
)
def test_the_fingerprint_changes_with_everything_that_changes_vectors(tmp_path, change):
    assert write(tmp_path / "a").fingerprint != write(tmp_path / "b", **change).fingerprint


def test_name_and_training_are_no_part_of_the_fingerprint(tmp_path):
    renamed = write(tmp_path / "b", name="b", training={"seed": 2})
    assert write(tmp_path / "a").fingerprint == renamed.fingerprint


@pytest.mark.parametrize("place", [0, 60, -1])
def test_a_flipped_byte_in_the_weights_is_refused(tmp_path, place):
    write(tmp_path / "m")
    path = tmp_path / "m" / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        load_artifact(tmp_path / "m")


def test_weights_that_match_their_digest_but_are_no_safetensors_are_refused(tmp_path):
    write(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS_FILE).write_bytes(b"no tensors")
    values = json.loads((tmp_path / "m" / MANIFEST_FILE).read_text())
    values["digest"] = hashlib.sha256(b"no tensors").hexdigest()
    (tmp_path / "m" / MANIFEST_FILE).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="no safetensors"):
        load_artifact(tmp_path / "m")


def test_a_missing_artifact_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no model artifact at"):
        load_artifact(tmp_path / "nowhere")


def test_a_manifest_without_weights_is_refused(tmp_path):
    write(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS_FILE).unlink()
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        load_artifact(tmp_path / "m")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 99),
        ("kind", "pickle"),
        ("dim", -1),
        ("dim", "64"),
        ("dim", True),
        ("options", []),
        ("name", ""),
        ("normalisation", "none"),
        ("surprise", 1),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_with_its_value(tmp_path, field, value):
    write(tmp_path / "m")
    path = tmp_path / "m" / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=field.replace("_", ".")):
        load_manifest(tmp_path / "m")


@pytest.mark.parametrize("text", ["{", "[]", "null", ""])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, text):
    write(tmp_path / "m")
    (tmp_path / "m" / MANIFEST_FILE).write_text(text)
    with pytest.raises(ArtifactError):
        load_manifest(tmp_path / "m")


def test_saving_again_replaces_the_artifact_and_leaves_nothing_beside_it(tmp_path):
    write(tmp_path / "m")
    second = write(tmp_path / "m", tensors={"w": torch.ones(1)})
    assert load_artifact(tmp_path / "m")[0] == second
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(ArtifactError, match="is no model artifact"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


def test_a_full_disk_leaves_the_old_artifact_and_nothing_half_written(tmp_path, monkeypatch):
    first = write(tmp_path / "m")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.artifact.os.fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write(tmp_path / "m", tensors={"w": torch.ones(1)})
    monkeypatch.undo()
    assert load_artifact(tmp_path / "m")[0] == first
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_manifests_cannot_be_changed():
    manifest = Manifest("encoder", "a", "convnet", {}, "image", {}, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.dim = 5
