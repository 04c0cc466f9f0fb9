"""What people and disks do wrong: one clear error each, nothing lost, nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import ArtifactError, ConflictError, StoreFullError, UsageError
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, embed, galleries, rollouts
from orchestrator.service import start as starting
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, **filters)


def served(context, key):
    """The gallery's vectors as they are served, and the row of one item."""
    from orchestrator.ledger.queries import galleries as gallery_queries
    from orchestrator.serving.matrix import load_matrix

    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        item = gallery_queries.item_by_key(connection, gallery.id, key)
        return load_matrix(connection, gallery.id).vectors, item.row


def test_missing_corrupt_and_strange_pictures_are_quarantined_and_the_rest_goes_on(context, tmp_path):
    folder = platform.draw_pictures(tmp_path / "pictures")
    (folder / "class-00" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 20)
    whole = (folder / "class-01" / "0.png").read_bytes()
    (folder / "class-01" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "class-02" / "empty.png").write_bytes(b"")
    (folder / "class-03" / "text.png").write_text("this is no picture")
    (folder / "class-04" / "gone.png").write_bytes(whole)
    galleries.create_gallery(context, "pics", str(folder))
    (folder / "class-04" / "gone.png").unlink()
    platform.register_network(context, tmp_path, "old", seed=0)
    row = platform.work(context, embed.embed_gallery(context, "pics", "old").id)
    assert (row.state, row.committed_items, row.quarantined_items) == ("finalized", 240, 5)
    errors = {e["item"]: e["class"] for e in view(context, "errors", rollout=row.id)}
    assert errors == {
        "class-00/corrupt.png": "corrupt",
        "class-01/truncated.png": "corrupt",
        "class-02/empty.png": "empty",
        "class-03/text.png": "unsupported",
        "class-04/gone.png": "missing",
    }
    with_model = [v for v in view(context, "embedding_versions", gallery="pics") if v["model"]]
    assert len(with_model) == 240


def test_a_quarantined_item_keeps_its_old_vector_and_version(world, tmp_path):
    (tmp_path / "pictures" / "class-00" / "0.png").write_bytes(b"gone bad")
    before, place = served(world, "class-00/0.png")
    row = platform.work(world, platform.start(world).id)
    after, _ = served(world, "class-00/0.png")
    np.testing.assert_array_equal(after[place], before[place])
    assert (np.abs(after - before).max(axis=1) > 0).sum() == len(after) - 1
    assert (row.state, row.quarantined_items) == ("finalizable", 1)
    versions = {v["item"]: v["model"] for v in view(world, "embedding_versions", gallery="pics")}
    assert versions.pop("class-00/0.png") == "old"
    assert set(versions.values()) == {"kin"}


def test_rows_of_a_manifest_without_their_file_and_duplicate_keys_are_refused_and_counted(context, tmp_path):
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    (tmp_path / "items.csv").write_text(
        "key,path,label\na,a.png,x\nb,nowhere.png,x\na,a.png,y\n,a.png,z\nc,,x\n"
    )
    imported = galleries.create_gallery(context, "few", str(tmp_path / "items.csv"))
    assert (imported.taken, imported.rejected) == (1, 4)
    assert imported.reasons == {"missing": 1, "duplicate key": 1, "no key": 1, "no path": 1}
    assert {e["item"] for e in view(context, "errors", gallery="few")} == {"a", "b", "c", "row 4"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("key,label\na,x\n", "needs the columns key, and path, clip or text"),
        ("", "it has none"),
        ("key,path\n", "no usable item"),
        (b"key,text\na,\xff\xfe\xfa\n", "not UTF-8"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_clear_error_and_leaves_no_gallery(
    context, tmp_path, content, said
):
    path = tmp_path / "items.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=said):
        galleries.create_gallery(context, "few", str(path))
    assert view(context, "audit") == []


def test_an_empty_folder_and_a_missing_one_are_clear_errors(context, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        galleries.create_gallery(context, "few", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no folder"):
        galleries.create_gallery(context, "few", str(tmp_path / "nowhere"))


def test_a_tampered_artifact_is_refused_wherever_it_would_be_used(world, tmp_path):
    from orchestrator.bootstrap import open_context

    with world.engine.connect() as connection:
        from orchestrator.ledger.queries import models as model_queries

        uri = Path(model_queries.model_by_name(connection, "kin").uri)
    weights = uri / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with open_context(world.settings) as fresh:
        row = starting.start(
            fresh, starting.StartRequest("pics", "kin", prototypes="classes", order="random")
        )
        advance.advance(fresh, row.id)
        with pytest.raises(ArtifactError, match="does not match its manifest"):
            platform.work(fresh, row.id)
    assert view(world, "rollout_status", id=row.id)[0]["committed"] == 0


def test_a_full_disk_loses_nothing_and_the_rollout_goes_on_when_there_is_room(world, monkeypatch):
    row = advance.advance(world, platform.start(world).id)
    real, left = os.pwrite, [4 * row.batch_size * 32 * 4]

    def nearly_full(descriptor: int, data: bytes, offset: int) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.raises(StoreFullError, match="Free space"):
        platform.work(world, row.id)
    status = view(world, "rollout_status", id=row.id)[0]
    assert 0 < status["committed"] < row.n_items
    assert status["leased"] == 0
    monkeypatch.setattr(os, "pwrite", real)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE batch SET available_at = NULL")
    assert platform.work(world, row.id).state == "finalizable"


def test_an_encoder_that_fails_on_one_item_loses_only_that_item(world, monkeypatch):
    from workers.encode import PlacedEncoder

    real = PlacedEncoder.encode
    poison = np.asarray(Image.open(world.settings.data_dir.parent / "pictures" / "class-07" / "3.png"))

    def encode(self: PlacedEncoder, prepared: list[np.ndarray]) -> np.ndarray:
        if any((each == poison).all() for each in prepared):
            raise RuntimeError("kernel launch failure")
        return real(self, prepared)

    monkeypatch.setattr(PlacedEncoder, "encode", encode)
    row = advance.advance(
        world, starting.start(world, starting.StartRequest("pics", "kin", order="random")).id
    )
    from workers.drain import drain

    result = drain(world, row.id, owner="test")
    assert (result.items, result.quarantined, result.failure) == (239, 1, None)
    assert [(e["item"], e["class"]) for e in view(world, "errors", rollout=row.id)] == [
        ("class-07/3.png", "poison")
    ]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, 3.0])
def test_a_vector_that_is_not_finite_or_not_of_length_one_is_never_stored(world, monkeypatch, wrong):
    from workers.drain import drain
    from workers.encode import PlacedEncoder

    real = PlacedEncoder.encode

    def encode(self: PlacedEncoder, prepared: list[np.ndarray]) -> np.ndarray:
        vectors = real(self, prepared)
        vectors[0] = vectors[0] * wrong
        return vectors

    row = advance.advance(
        world, starting.start(world, starting.StartRequest("pics", "kin", order="random")).id
    )
    monkeypatch.setattr(PlacedEncoder, "encode", encode)
    result = drain(world, row.id, owner="test")
    batches = row.n_items // row.batch_size
    # One of sixteen is far beyond the failure budget: paused after ten, and again whenever it is resumed.
    assert (result.batches, result.quarantined) == (10, 10)
    assert "failure_budget: 10 of the last 1000" in view(world, "rollout_status", id=row.id)[0]["reason"]
    rollouts.resume(world, row.id)
    drain(world, row.id, owner="test")
    assert view(world, "rollout_status", id=row.id)[0]["quarantined"] == batches
    assert {e["class"] for e in view(world, "errors", rollout=row.id)} == {"bad_vector"}
    norms = np.linalg.norm(served(world, "class-00/0.png")[0], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_an_encoder_that_mixes_up_its_rows_is_caught_by_a_canary_and_nothing_is_stored(world, monkeypatch):
    from workers.drain import drain
    from workers.encode import PlacedEncoder

    real = PlacedEncoder.encode
    monkeypatch.setattr(PlacedEncoder, "encode", lambda self, prepared: real(self, prepared)[::-1].copy())
    row = advance.advance(
        world, starting.start(world, starting.StartRequest("pics", "kin", order="random")).id
    )
    result = drain(world, row.id, owner="test")
    assert isinstance(result.failure, ArtifactError)
    assert "mixes up its rows" in str(result.failure)
    status = view(world, "rollout_status", id=row.id)[0]
    assert (status["committed"], status["leased"]) == (0, 0)


@pytest.mark.parametrize("step", ["stage", "_encode_canaries", "vectors_of"])
def test_a_lost_device_ends_the_process_whichever_step_notices(world, monkeypatch, step):
    from workers import pipeline
    from workers.drain import drain
    from workers.encode import PlacedEncoder

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    ended = []
    monkeypatch.setattr(pipeline, "end_if_sticky", ended.append)
    monkeypatch.setattr(PlacedEncoder if step == "stage" else pipeline.Pipeline, step, lost)
    row = advance.advance(
        world, starting.start(world, starting.StartRequest("pics", "kin", order="random")).id
    )
    drain(world, row.id, owner="test", slice_s=1)
    assert "illegal memory access" in str(ended[0])


def test_an_item_that_cannot_be_read_keeps_its_stored_vector_in_a_certificate(world, tmp_path):
    from orchestrator.service.certify import CertifyRequest, certify

    whole = certify(world, CertifyRequest("old", "kin", "pics", minimum_queries=20)).measured
    for label in range(platform.CLASSES):
        for number in range(platform.PER_CLASS):
            (tmp_path / "pictures" / f"class-{label:02d}" / f"{number}.png").write_bytes(b"gone")
    blind = certify(world, CertifyRequest("old", "kin", "pics", minimum_queries=20)).measured
    assert blind["unreadable_items"] == blind["sampled_items"] == 240
    assert blind["new_new"] == blind["new_old"] == whole["new_old"]


def test_an_encoder_that_fails_on_everything_ends_with_the_failure_and_commits_nothing(world, monkeypatch):
    from workers.encode import PlacedEncoder

    row = advance.advance(
        world, starting.start(world, starting.StartRequest("pics", "kin", order="random")).id
    )

    def fail(self: PlacedEncoder, prepared: list[np.ndarray]) -> np.ndarray:
        raise RuntimeError("no CUDA")

    monkeypatch.setattr(PlacedEncoder, "encode", fail)
    monkeypatch.setattr("orchestrator.service.poison.RETRY_IN_S", (0.0, 0.0))
    from workers.drain import drain

    result = drain(world, row.id, owner="test")
    assert result.batches == 0
    status = view(world, "rollout_status", id=row.id)[0]
    assert (status["state"], status["committed"], status["leased"]) == ("paused", 0, 0)
    assert "no CUDA" in status["reason"]


def test_a_damaged_extent_is_found_by_its_checksum_and_never_served(world):
    from orchestrator.serving.replica import Replica
    from orchestrator.store import CorruptExtentError

    row = platform.work(world, platform.start(world).id)
    path = Path(row.extent_uri) / "vectors.f32"
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 255]))
    with world.engine.connect() as connection:
        from orchestrator.ledger.queries import galleries as gallery_queries

        gallery = gallery_queries.gallery_by_name(connection, "pics")
    with pytest.raises(CorruptExtentError, match="does not match its checksum"):
        Replica(world, gallery)


def test_a_gallery_without_embeddings_can_neither_be_searched_nor_rolled_out(context, tmp_path):
    from orchestrator.ledger.queries import galleries as gallery_queries
    from orchestrator.serving.replica import Replica

    galleries.create_gallery(context, "pics", str(platform.draw_pictures(tmp_path / "pictures")))
    platform.register_network(context, tmp_path, "old", seed=0)
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
    with pytest.raises(ConflictError, match="gallery embed"):
        Replica(context, gallery)
    with pytest.raises(ConflictError, match="gallery embed"):
        platform.start(context, "old")


def test_an_embedding_of_an_embedded_gallery_is_refused_with_the_right_command(world):
    with pytest.raises(ConflictError, match="rollout start"):
        embed.embed_gallery(world, "pics", "kin")


def test_names_that_would_not_fit_a_command_line_are_refused(context, tmp_path):
    for name in ("", "with space", "../up", "12", "x" * 101):
        with pytest.raises(UsageError, match="cannot be used"):
            galleries.create_gallery(context, name, str(tmp_path))
