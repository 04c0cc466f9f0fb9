"""The rotation and its quantiser, against what must hold of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.codecs import fit_codec, load_codec
from models.codecs.codes import CodeShape
from models.codecs.rotation import RotationCodec, cells, cosines, turning


def units(n: int, dim: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32) + np.float32(shift)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fitted(folder: Path, vectors: np.ndarray, width: int, loops: int, **options: float) -> RotationCodec:
    fit_codec(
        "rotation", vectors, vectors, np.arange(len(vectors)), width=width, loops=loops, folder=folder,
        name="r", modality="text", source_fingerprint="from", options=options,
    )  # fmt: skip
    codec = load_codec(folder)
    assert isinstance(codec, RotationCodec)
    return codec


def test_each_matrix_is_orthogonal_and_more_dimensions_than_there_are_take_several() -> None:
    draw = np.random.default_rng(0)
    one, many = turning(units(50, 8), 8, draw), turning(units(50, 8), 20, draw)
    assert np.allclose(one.T @ one, np.eye(8), atol=1e-5)
    assert many.shape == (8, 20)
    for block in (many[:, :8], many[:, 8:16], many[:, 16:]):
        assert np.allclose(block.T @ block, np.eye(block.shape[1]), atol=1e-5)
    assert not np.allclose(many[:, :8], many[:, 8:16])


def test_fewer_dimensions_keep_the_principal_ones() -> None:
    plane = np.zeros((200, 10), np.float32)
    plane[:, [3, 7]] = units(200, 2)
    turned = plane @ turning(plane, 2, np.random.default_rng(0))
    assert np.allclose(turned @ turned.T, plane @ plane.T, atol=1e-5)


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_the_step_is_about_that_of_a_gaussian_and_no_other_comes_closer(tmp_path: Path, loops: int) -> None:
    vectors = units(2000, 64, shift=0.2)
    codec = fitted(tmp_path / "c", vectors, 64, loops)
    # The uniform quantisers of least error for a Gaussian of 4, 8 and 16 cells (Max, 1960).
    assert codec.step == pytest.approx({1: 0.9957, 2: 0.5860, 3: 0.3352}[loops], rel=0.12)
    turned = (vectors @ codec.rotation) * 8

    def closeness(step: float) -> float:
        return float(cosines(turned, cells(turned, codec.shape, step), codec.shape).mean())

    assert closeness(codec.step) > max(closeness(codec.step * 0.8), closeness(codec.step * 1.25))


def test_cells_are_of_one_width_and_the_outermost_are_open() -> None:
    turned = np.array([[-9, -1.01, -0.99, -0.01, 0, 0.99, 1.0, 9]], np.float32)
    assert cells(turned, CodeShape(8, 1), 1.0).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert cells(turned, CodeShape(8, 0), 1.0).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_more_bits_point_closer_to_where_the_vector_points(tmp_path: Path) -> None:
    vectors = units(500, 32)
    closeness = []
    for loops in range(4):
        codec = fitted(tmp_path / str(loops), vectors, 32, loops)
        closeness.append(
            float(((vectors @ codec.rotation) * codec.shape.unit(codec.encode(vectors))).sum(1).mean())
        )
    # A Gaussian coordinate's: sqrt(2/π) of one bit, sqrt(1 - least error) of more.
    assert closeness == pytest.approx([0.798, 0.939, 0.981, 0.994], abs=0.01)


def test_a_vector_at_a_threshold_expects_the_bits_beyond_it_to_turn(tmp_path: Path) -> None:
    codec = fitted(tmp_path / "c", units(500, 8), 8, 1, noise=0.001)
    # The first coordinate in the middle of a cell; then at either side of the middle threshold, where between numbers 1
    # and 2 two bits turn, half of the time.
    turned = np.full((3, 8), 0.5 * codec.step)
    turned[1:, 0] = [1e-5, -1e-5]
    # The last four, far above their threshold, make each row's root mean square the 1 that all have.
    turned[:, 4:] = np.sqrt((8 - np.square(turned[:, :4]).sum(axis=1)) / 4)[:, None]
    vectors = turned @ codec.rotation.T / np.sqrt(8)
    inside, above, beneath = codec.expected_flips(vectors.astype(np.float32))
    assert codec.encode(vectors.astype(np.float32))[:, 0].tolist() == [2, 2, 1]
    assert above - inside == pytest.approx(1.0, abs=0.05)
    assert beneath - inside == pytest.approx(1.0, abs=0.05)


def towards(folder: Path, vectors: np.ndarray, old: np.ndarray, loops: int) -> RotationCodec:
    fit_codec(
        "rotation", vectors, vectors, np.arange(len(vectors)), width=old.shape[1], loops=loops, folder=folder,
        name="r", modality="text", source_fingerprint="from", old_positives=old, seed=5,
    )  # fmt: skip
    codec = load_codec(folder)
    assert isinstance(codec, RotationCodec)
    return codec


def test_towards_an_old_codec_of_the_same_vectors_the_same_rotation_is_found_again(tmp_path: Path) -> None:
    vectors = units(4000, 24)
    old = fitted(tmp_path / "old", vectors, 24, 0)
    new = towards(tmp_path / "new", vectors, old.shape.unit(old.encode(vectors)), 2)
    assert np.abs(new.rotation - old.rotation).max() < 0.05
    stranger = fitted(tmp_path / "stranger", vectors[::-1], 24, 2, noise=0.1)
    stranger.rotation = turning(vectors, 24, np.random.default_rng(9))
    seen = units(500, 24, seed=3)
    codes = old.shape.unit(old.encode(seen))

    def found(codec: RotationCodec) -> float:
        queries = codec.shape.unit(codec.encode(seen))
        return float(((queries @ codes.T).argmax(axis=1) == np.arange(len(seen))).mean())

    assert found(new) > 0.9
    assert found(stranger) < 0.1


@pytest.mark.parametrize("width", [16, 32])
def test_towards_codes_of_another_width_cosines_are_kept_as_far_as_there_is_room(
    tmp_path: Path, width: int
) -> None:
    vectors = units(1000, 24)
    old = fitted(tmp_path / "old", vectors, width, 1)
    new = towards(tmp_path / "new", vectors, old.shape.unit(old.encode(vectors)), 1)
    gram = new.rotation @ new.rotation.T if width > 24 else new.rotation.T @ new.rotation
    assert np.allclose(gram, np.eye(min(24, width)), atol=1e-5)


def test_vectors_that_crowd_around_one_direction_are_centred_and_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    crowd = np.ones(32, np.float32) / np.sqrt(32) + 0.01 * rng.standard_normal((400, 32)).astype(np.float32)
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    near = crowd + 0.004 * rng.standard_normal(crowd.shape).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)

    def found(codec: RotationCodec) -> float:
        queries, codes = (codec.shape.unit(codec.encode(each)) for each in (near, crowd))
        return float(((queries @ codes.T).argmax(axis=1) == np.arange(len(crowd))).mean())

    centred = fitted(tmp_path / "c", crowd, 32, 2)
    plain = fitted(tmp_path / "p", crowd, 32, 2, crowded=1.0)
    assert np.allclose(centred.centre, crowd.mean(axis=0))
    assert not plain.centre.any()
    assert found(centred) > found(plain) + 0.1
    assert not fitted(tmp_path / "u", units(400, 32), 32, 2).centre.any(), "these do not crowd"
