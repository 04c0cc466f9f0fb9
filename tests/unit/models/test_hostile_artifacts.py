"""Artifacts of strangers: no code, no links, no pipes, no headers without end; what is hashed is what is parsed."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import numpy as np
import pytest
import torch

from models.artifact import MANIFEST_FILE, WEIGHTS_FILE, copy_artifact, load_artifact, save_artifact
from models.datasets import list_items
from models.datasets.embeddings_file import map_embeddings
from models.encoders import load_encoder
from models.errors import ArtifactError, UsageError


@pytest.fixture
def folder(tmp_path):
    save_artifact(
        tmp_path / "m", {"w": torch.ones(2)}, kind="encoder", name="a", architecture="convnet", options={}, modality="image",
        preprocessing={}, dim=4,
    )  # fmt: skip
    return tmp_path / "m"


def change(folder, **values):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def give_weights(folder, content):
    (folder / WEIGHTS_FILE).write_bytes(content)
    change(folder, digest=hashlib.sha256(content).hexdigest())


def test_an_artifact_that_names_code_is_refused_before_the_code_is_called(folder, tmp_path):
    mark = tmp_path / "called"
    change(folder, architecture="factory", options={"factory": "os:mkdir", "options": {"path": str(mark)}})
    with pytest.raises(ArtifactError, match="names code to call"):
        load_encoder(folder)
    with pytest.raises(ArtifactError, match="not the one that was registered"):
        load_encoder(folder, expected="0" * 64, own_code=True)
    assert not mark.exists()
    with pytest.raises(ArtifactError, match="no encode"):  # named by a person: it is called
        load_encoder(folder, own_code=True)
    assert mark.is_dir()


@pytest.mark.parametrize("name", [MANIFEST_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_in_an_artifact_is_refused_and_not_waited_for(folder, tmp_path, name, kind):
    (folder / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    with pytest.raises(ArtifactError, match="symbolic link" if kind == "link" else "no plain file"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "cut off"),
        (struct.pack("<Q", 5 * 2**20) + bytes(5 * 2**20), "limit is"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "no JSON"),
        (b"x", "cut off"),
        ((lambda h: struct.pack("<Q", len(h)) + h)(json.dumps({str(n): {} for n in range(10_001)}).encode()), "tensors"),
        ((lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":{},"a":{}}'), "twice"),
    ],
    ids=["no end", "large header", "deep header", "short", "many tensors", "double name"],
)  # fmt: skip
def test_a_header_that_is_not_sane_is_refused_before_it_is_parsed(folder, content, said):
    give_weights(folder, content)
    with pytest.raises(ArtifactError, match=said):
        load_artifact(folder)


def test_a_manifest_that_is_nested_without_end_is_one_clear_error(folder):
    (folder / MANIFEST_FILE).write_text('{"a":' * 100_000)
    with pytest.raises(ArtifactError, match="no JSON"):
        load_artifact(folder)


def test_only_the_two_files_of_an_artifact_are_copied(folder, tmp_path):
    (folder / "more").symlink_to("/etc/hostname")
    copy_artifact(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {MANIFEST_FILE, WEIGHTS_FILE}
    assert load_artifact(tmp_path / "copy")[0] == load_artifact(folder)[0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"items{suffix}")
    with pytest.raises(UsageError, match="no plain file"):
        list_items(str(tmp_path / f"items{suffix}"))


def test_embeddings_are_mapped_and_pipes_objects_and_cut_off_files_are_refused(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "good.npy", vectors)
    np.testing.assert_array_equal(map_embeddings(tmp_path / "good.npy"), vectors)
    np.save(tmp_path / "columns.npy", np.asfortranarray(vectors))
    np.testing.assert_array_equal(map_embeddings(tmp_path / "columns.npy"), vectors)
    os.mkfifo(tmp_path / "pipe.npy")
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    (tmp_path / "short.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    for name, said in {
        "pipe": "no plain file",
        "objects": "holds object",
        "short": "cut off",
        "none": "No such",
    }.items():
        with pytest.raises(UsageError, match=said):
            map_embeddings(tmp_path / f"{name}.npy")
