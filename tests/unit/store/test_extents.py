"""Extents: what is written is what is read, retries are the same bytes, damage is found."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from orchestrator.errors import UnreachableError
from orchestrator.store.extents import (
    VECTORS,
    CorruptExtentError,
    ExtentFile,
    new_folder,
    read_rows,
    write_rows,
)


@pytest.fixture
def extents(tmp_path):
    file = ExtentFile(tmp_path, VECTORS, 100, 8)
    file.create()
    yield file
    file.close()


def some(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


def test_batches_written_in_any_order_stand_at_their_ranks(extents):
    whole = some(100)
    for first in (60, 0, 30):
        count = 40 if first == 60 else 30
        assert extents.write(first, whole[first : first + count]) == zlib.crc32(
            whole[first : first + count].tobytes()
        )
    np.testing.assert_array_equal(extents.map(), whole)


def test_a_retry_writes_the_same_bytes_to_the_same_place(extents):
    first = extents.write(10, some(5))
    assert extents.write(10, some(5)) == first
    np.testing.assert_array_equal(extents.read(10, 5, first), some(5))


def test_a_flipped_bit_is_found_at_reading(extents):
    crc = extents.write(0, some(10))
    with extents.path.open("r+b") as file:
        file.seek(17)
        byte = file.read(1)
        file.seek(17)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptExtentError, match="does not match its checksum"):
        extents.read(0, 10, crc)


@pytest.mark.parametrize(
    ("first", "vectors"), [(99, some(2)), (0, some(2)[:, :7]), (0, some(2).astype(np.float64))]
)
def test_vectors_that_do_not_fit_are_never_written(extents, first, vectors):
    with pytest.raises(ValueError, match="does not fit"):
        extents.write(first, vectors)


def test_rows_survive_the_way_to_disk_and_back(tmp_path):
    row_of = np.random.default_rng(0).permutation(1000).astype(np.uint32)
    write_rows(tmp_path, row_of)
    np.testing.assert_array_equal(read_rows(tmp_path, 1000), row_of)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.u32"]


def test_a_missing_store_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UnreachableError, match="bring the store back"):
        ExtentFile(tmp_path / "gone", VECTORS, 10, 8).map()
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="cannot write"):
        new_folder(tmp_path / "file", 1)


def test_two_folders_are_never_the_same(tmp_path):
    assert len({new_folder(tmp_path, 1) for _ in range(50)}) == 50
