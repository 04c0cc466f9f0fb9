"""Extents of floats and of codes do the same over every kind of store; codes take a few bits a dimension."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from models.codecs.codes import CodeShape
from orchestrator.store import CorruptExtentError, new_folder, open_extents
from tests.contract.stores import place_of

DIM = 19  # no multiple of 8: the last byte of a plane is not full
FORMATS = {
    "floats": None,
    "signs": CodeShape(DIM, 0),
    "two bits": CodeShape(DIM, 1),
    "four": CodeShape(DIM, 3),
}


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request):
    return new_folder(place_of(request.param, request).root, 7)


@pytest.fixture(params=FORMATS)
def codes(request):
    return FORMATS[request.param]


def some(n, codes, seed=0):
    """Rows that the format can hold."""
    rng = np.random.default_rng(seed)
    if codes is None:
        return rng.normal(size=(n, DIM)).astype(np.float32)
    return codes.unit(rng.integers(0, codes.top + 1, (n, DIM)).astype(np.uint8))


def test_what_is_written_is_read_bit_for_bit_under_its_fence(folder, codes):
    extents = open_extents(folder, DIM, codes)
    first, second, late = (some(n, codes, seed) for n, seed in ((30, 0), (30, 1), (5, 2)))
    sums = [extents.write(*at, rows) for at, rows in (((0, 1), first), ((0, 2), second), ((1000, 1), late))]
    extents.close()
    reader = open_extents(folder, DIM, codes)
    for rank, n, fence, crc, rows in (
        (0, 30, 1, sums[0], first),
        (0, 30, 2, sums[1], second),
        (1000, 5, 1, sums[2], late),
    ):
        read = reader.read(rank, n, fence, crc)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, rows)
        read[0] = 0  # the caller's own memory


def test_some_rows_are_read_in_any_order(folder, codes):
    extents, rows = open_extents(folder, DIM, codes), some(40, codes)
    crc = extents.write(0, 1, rows[:8]), extents.write(8, 1, rows[8:])
    extents.close()
    for places in ([31], [5, 0, 5, 17], list(range(31, -1, -1)), []):
        chosen = np.array(places, np.int64)
        np.testing.assert_array_equal(extents.pick(8, 32, 1, crc[1], chosen), rows[8:][chosen])


def test_the_checksum_is_of_the_bytes_that_are_kept_and_found_at_reading(folder, codes):
    extents, rows = open_extents(folder, DIM, codes), some(10, codes)
    crc = extents.write(0, 1, rows)
    kept = rows.tobytes() if codes is None else codes.pack(codes.of_unit(rows)).tobytes()
    assert len(kept) == 10 * extents.format.row_bytes
    assert crc == zlib.crc32(kept)
    for read in (
        lambda: extents.read(0, 10, 1, crc ^ 1),
        lambda: extents.pick(0, 10, 1, crc ^ 1, np.arange(9)),
    ):
        with pytest.raises(CorruptExtentError, match="does not match its checksum"):
            read()
    with pytest.raises(CorruptExtentError, match=r"has|is missing"):
        extents.read(0, 12, 1, None) if extents.url[0] == "/" else extents.read(0, 10, 2, None)


def test_a_row_of_zeros_has_a_place_among_the_others(folder, codes):
    extents, rows = open_extents(folder, DIM, codes), some(6, codes)
    rows[[1, 4]] = 0
    read = extents.read(0, 6, 1, extents.write(0, 1, rows))
    np.testing.assert_array_equal(read[[0, 2, 3, 5]], rows[[0, 2, 3, 5]])


@pytest.mark.parametrize("shape", [each for each in FORMATS.values() if each is not None])
def test_what_is_no_code_is_never_written(folder, shape):
    extents = open_extents(folder, DIM, shape)
    for rows in (some(4, None), some(4, shape)[:, 1:], some(4, shape).astype(np.float64)):
        with pytest.raises(ValueError, match=r"are no|does not fit"):
            extents.write(0, 1, rows)
    with pytest.raises(CorruptExtentError, match="is missing"):
        extents.read(0, 1, 1, None)
