"""What every kind of store must do: the same tests over a folder, fsspec's memory and a server that speaks S3."""

from __future__ import annotations

import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from orchestrator import failpoints
from orchestrator.errors import StoreFullError, UnreachableError, UsageError
from orchestrator.store import (
    CorruptExtentError,
    list_folders,
    new_folder,
    open_extents,
    open_table,
    probe,
    read_array,
    remove_folder,
    write_array,
)
from tests.contract.stores import place_of

DIM = 8


@pytest.fixture(params=["local", "memory", "s3"])
def place(request):
    return place_of(request.param, request)


@pytest.fixture
def folder(place):
    return new_folder(place.root, 7)


@pytest.fixture
def extents(folder):
    opened = open_extents(folder, DIM)
    yield opened
    opened.close()


@pytest.fixture
def armed():
    yield failpoints.arm
    failpoints.arm("")


def some(n, seed=0, dim=DIM):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def flip_a_bit(data):
    data[17] ^= 1
    return data


# -- extents ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_in_any_order(extents, folder):
    whole, sums = some(100), {}
    for first, end in ((60, 100), (0, 30), (30, 60)):
        sums[first] = extents.write(first, 1, whole[first:end])
        assert sums[first] == zlib.crc32(whole[first:end].tobytes())
    for reader in (extents, open_extents(folder, DIM)):
        parts = [
            reader.read(first, end - first, 1, sums[first]) for first, end in ((0, 30), (30, 60), (60, 100))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert parts[0].dtype == np.float32
        parts[0][0] = 0  # the caller's own memory


def test_vectors_that_are_not_contiguous_are_written_as_they_read(extents):
    wide = some(10, dim=2 * DIM)
    crc = extents.write(0, 1, wide[:, ::2])
    np.testing.assert_array_equal(extents.read(0, 10, 1, crc), wide[:, ::2])


def test_the_same_claim_may_write_again(extents):
    crc = extents.write(10, 3, some(5))
    assert extents.write(10, 3, some(5)) == crc
    np.testing.assert_array_equal(extents.read(10, 5, 3, crc), some(5))


def test_a_worker_with_an_older_fence_cannot_touch_newer_bytes(extents, folder):
    zombie, newer = open_extents(folder, DIM), some(20, seed=2)
    zombie.write(0, 1, some(20, seed=1))
    crc = extents.write(0, 2, newer)
    zombie.write(0, 1, some(20, seed=3))
    zombie.write(0, 1, some(40, seed=4))
    zombie.close()
    np.testing.assert_array_equal(extents.read(0, 20, 2, crc), newer)


def test_a_newer_claim_cannot_touch_committed_bytes_of_an_older_one(extents):
    crc = extents.write(0, 1, some(20))
    for fence in (2, 3, 12):
        extents.write(0, fence, some(20, seed=fence))
    np.testing.assert_array_equal(extents.read(0, 20, 1, crc), some(20))


def test_ranks_far_beyond_the_planned_ones_have_a_place(extents):
    crc = extents.write(0, 1, some(16))
    late = extents.write(1_000_000, 1, some(3, seed=1))
    np.testing.assert_array_equal(extents.read(1_000_000, 3, 1, late), some(3, seed=1))
    np.testing.assert_array_equal(extents.read(0, 16, 1, crc), some(16))


@pytest.mark.parametrize("fence", [1, 2])
def test_a_flipped_bit_is_found_at_reading(place, extents, folder, fence):
    crc = extents.write(0, fence, some(10))
    place.change(folder, extent_name(place, fence), flip_a_bit)
    with pytest.raises(CorruptExtentError, match="does not match its checksum"):
        extents.read(0, 10, fence, crc)


def test_a_wrong_checksum_in_the_ledger_is_found(extents):
    crc = extents.write(0, 1, some(10))
    with pytest.raises(CorruptExtentError, match="does not match its checksum"):
        extents.read(0, 10, 1, crc ^ 1)


def test_a_cut_extent_is_found_even_without_a_checksum(place, extents, folder):
    extents.write(0, 1, some(10))
    place.change(folder, extent_name(place, 1), lambda data: data[:-4])
    for crc in (None, 123):
        with pytest.raises(CorruptExtentError, match="has 316 bytes instead of 320"):
            extents.read(0, 10, 1, crc)


def test_a_missing_extent_is_found(place, extents, folder):
    crc = extents.write(0, 1, some(10))
    with pytest.raises(CorruptExtentError, match="is missing"):
        extents.read(0, 10, 2, crc)
    place.remove(folder, extent_name(place, 1))
    with pytest.raises(CorruptExtentError, match="is missing"):
        extents.read(0, 10, 1, crc)


@pytest.mark.parametrize(
    ("first", "fence", "vectors"),
    [
        (0, 1, some(2)[:, :7]),
        (0, 1, some(2).astype(np.float64)),
        (0, 1, some(2)[0]),
        (0, 1, some(2)[:0]),
        (0, 0, some(2)),
        (-1, 1, some(2)),
    ],
)
def test_what_does_not_fit_is_never_written(place, extents, folder, first, fence, vectors):
    before = place.names(folder)
    with pytest.raises(ValueError, match="does not fit"):
        extents.write(first, fence, vectors)
    assert place.names(folder) == before


def test_two_threads_write_side_by_side(extents):
    whole, sums, faults = some(64 * 16), {}, []

    def write(start):
        try:
            for first in range(start, len(whole), 32):
                sums[first] = extents.write(first, 1 + first % 3, whole[first : first + 16])
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            faults.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(sums) == 64
    for first, crc in sums.items():
        np.testing.assert_array_equal(extents.read(first, 16, 1 + first % 3, crc), whole[first : first + 16])


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["mid_write", "written"])
def test_a_full_store_is_named_and_the_next_claim_goes_through(extents, armed, point):
    armed(f"{point}=disk_full")
    with pytest.raises(StoreFullError, match="Free space or move the store"):
        extents.write(0, 1, some(10))
    crc = extents.write(0, 2, some(10))
    np.testing.assert_array_equal(extents.read(0, 10, 2, crc), some(10))


@pytest.mark.parametrize("point", ["mid_write", "written", "synced"])
def test_an_input_output_error_is_named_and_the_next_claim_goes_through(extents, armed, point):
    crc = extents.write(20, 1, some(10, seed=1))
    armed(f"{point}=io_error")
    with pytest.raises(UnreachableError, match="Input/output error; bring the store back"):
        extents.write(0, 1, some(10))
    np.testing.assert_array_equal(extents.read(0, 10, 2, extents.write(0, 2, some(10))), some(10))
    np.testing.assert_array_equal(extents.read(20, 10, 1, crc), some(10, seed=1))


def test_each_fail_point_of_a_write_is_reached_once(extents, monkeypatch):
    reached = []
    for kind in ("local", "remote"):
        monkeypatch.setattr(f"orchestrator.store.{kind}.reach", reached.append)
    extents.write(0, 1, some(10))
    assert reached == ["mid_write", "written", "synced"]


# -- arrays and tables ------------------------------------------------------------------------------------------------


def test_rows_survive_the_way_to_the_store_and_back(place, folder):
    row_of = np.random.default_rng(0).permutation(1000).astype(np.uint32)
    before = place.names(folder)
    write_array(folder, "rows.u32", row_of)
    np.testing.assert_array_equal(read_array(folder, "rows.u32", "<u4", 1000), row_of)
    assert sorted({*place.names(folder)} - {*before}) == ["rows.u32"]


def test_an_array_is_replaced_as_a_whole_and_may_grow(folder):
    write_array(folder, "rows.u32", np.arange(10, dtype=np.uint32))
    mapped = read_array(folder, "rows.u32", "<u4", 10)
    write_array(folder, "rows.u32", np.arange(100, 120, dtype=np.uint32))
    np.testing.assert_array_equal(mapped, np.arange(10))
    np.testing.assert_array_equal(read_array(folder, "rows.u32", "<u4", 20), np.arange(100, 120))
    np.testing.assert_array_equal(read_array(folder, "rows.u32", "<u4", (5, 2)).ravel(), np.arange(100, 110))


def test_arrays_are_read_only_and_may_be_empty(folder):
    write_array(folder, "rows.u32", np.arange(4, dtype=np.uint32))
    with pytest.raises(ValueError, match="read-only"):
        read_array(folder, "rows.u32", "<u4", 4)[0] = 1
    assert read_array(folder, "none.u32", "<u4", 0).shape == (0,)


def test_an_array_of_any_byte_order_is_stored_little_endian(folder):
    write_array(folder, "rows.u32", np.arange(4, dtype=">u4"))
    np.testing.assert_array_equal(read_array(folder, "rows.u32", "<u4", 4), np.arange(4))


def test_a_cut_or_missing_array_is_found(place, folder):
    write_array(folder, "rows.u32", np.arange(10, dtype=np.uint32))
    place.change(folder, "rows.u32", lambda data: data[:-1])
    with pytest.raises(CorruptExtentError, match="has 39 bytes instead of 40"):
        read_array(folder, "rows.u32", "<u4", 10)
    with pytest.raises(CorruptExtentError, match="is missing"):
        read_array(folder, "other.u32", "<u4", 10)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64])
def test_a_table_is_appended_in_any_steps_and_read_as_a_whole(folder, monkeypatch, rows):
    monkeypatch.setattr("orchestrator.store.remote.CHUNK_ROWS", 16)
    whole = some(rows)
    for step in (1, 7, 40):
        table = open_table(folder, "adapted.f32", rows, DIM)
        table.create()
        for first in range(0, rows, step):
            table.append(whole[first : first + step])
        table.finish()
        np.testing.assert_array_equal(open_table(folder, "adapted.f32", rows, DIM).map(), whole)


def test_a_table_does_not_keep_the_callers_memory(folder):
    table, rows = open_table(folder, "adapted.f32", 4, DIM), some(4)
    table.create()
    table.append(rows)
    rows[:] = 0
    table.finish()
    np.testing.assert_array_equal(table.map(), some(4))


def test_a_table_that_is_not_finished_cannot_be_read(folder):
    table = open_table(folder, "adapted.f32", 10, DIM)
    table.create()
    table.append(some(6))
    with pytest.raises(ValueError, match="6 rows are not the 10"):
        table.finish()
    with pytest.raises(ValueError, match="12 rows do not fit"):
        table.append(some(6))
    table.close()
    with pytest.raises(CorruptExtentError, match="is missing"):
        table.map()


def test_a_table_is_begun_again_after_an_attempt_that_died(place, folder):
    for rows in (4, 10):
        table = open_table(folder, "adapted.f32", 10, DIM)
        before = place.names(folder)
        table.create()
        table.append(some(rows, seed=rows))
        if rows == 4:
            table.close()
            assert place.names(folder) == before
    table.finish()
    np.testing.assert_array_equal(table.map(), some(10, seed=10))


# -- folders ----------------------------------------------------------------------------------------------------------


def test_two_folders_are_never_the_same_and_all_are_listed(place):
    made = [new_folder(place.root, gallery) for gallery in (1, 1, 2, 12)]
    write_array(made[0], "rows.u32", np.arange(3, dtype=np.uint32))
    assert len({*made}) == 4
    assert list_folders(place.root) == sorted(made)
    assert list_folders(f"{place.root}/") == sorted(made)


def test_an_untouched_root_has_no_folders(place):
    assert list_folders(place.root) == []


def test_a_removed_folder_is_gone_with_all_in_it_and_its_neighbours_stay(place):
    gone, stays = new_folder(place.root, 1), new_folder(place.root, 1)
    for folder in (gone, stays):
        extents = open_extents(folder, DIM)
        extents.write(0, 1, some(4))
        extents.close()
    remove_folder(place.root, gone)
    remove_folder(place.root, gone)
    assert list_folders(place.root) == [stays]
    np.testing.assert_array_equal(open_extents(stays, DIM).read(0, 4, 1, None), some(4))
    with pytest.raises((CorruptExtentError, UnreachableError)):
        open_extents(gone, DIM).read(0, 4, 1, None)


def test_nothing_outside_the_root_is_ever_removed(place):
    other = new_folder(f"{place.root}-other", 1)
    inside = new_folder(place.root, 1)
    name = inside.removeprefix(place.root)
    outside = [
        other,
        place.root,
        f"{place.root}/",
        inside.rpartition("/")[0],
        f"{place.root}/../{other.rpartition('root')[2]}",
        f"{place.root}{name}/..",
        f"{place.root}{name}/../../../{other.rpartition('/')[2]}",
        f"{place.root}/gallery-x/0000",
        "",
        "/",
    ]
    for url in outside:
        with pytest.raises(UsageError, match="nothing was removed"):
            remove_folder(place.root, url)
    assert list_folders(f"{place.root}-other") == [other]
    assert list_folders(place.root) == [inside]


def test_a_probe_leaves_nothing_behind(place, folder):
    before = place.names(place.root)
    free = probe(place.root)
    assert place.names(place.root) == before
    assert (free is not None and free > 0) == (place.root[0] == "/")


@pytest.mark.parametrize("kind", ["local", "s3"])  # fsspec's memory is one process's
def test_a_reader_in_another_process_sees_what_is_written_while_it_runs(kind, request):
    code = """if 1:
        import sys
        from orchestrator.store import CorruptExtentError, list_folders, open_extents
        root, folder = sys.argv[1:]
        reader = open_extents(folder, 8)
        try:
            reader.read(0, 4, 1, None)
        except CorruptExtentError:
            print(len(list_folders(root)), "missing", flush=True)
        crc = int(sys.stdin.readline())
        print(len(list_folders(root)), reader.read(0, 4, 1, crc).sum() != 0, flush=True)
    """
    place = place_of(kind, request)
    folder = new_folder(place.root, 1)
    command = [sys.executable, "-c", code, place.root, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "1 missing\n"
        new_folder(place.root, 2)
        crc = open_extents(folder, DIM).write(0, 1, some(4))
        assert reader.communicate(f"{crc}\n", timeout=60)[0] == "2 True\n"


def extent_name(place, fence):
    if place.root[0] == "/":
        return "vectors.f32" if fence == 1 else f"vectors.{fence}.f32"
    return f"vectors/{0:012d}.{fence}.f32"
