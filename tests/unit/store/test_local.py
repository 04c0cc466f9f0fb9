"""The local store: which file, what a failed sync does to it, what a disk says when it is full."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import numpy as np
import pytest

from orchestrator import failpoints
from orchestrator.errors import StoreFullError, UnreachableError
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


@pytest.fixture
def extents(tmp_path):
    opened = open_extents(str(tmp_path), 8)
    yield opened
    opened.close()
    failpoints.arm("")


def some(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


def test_the_first_fence_has_the_plain_name_and_ranks_are_places(extents, tmp_path):
    extents.write(10, 1, some(5))
    extents.write(3, 2, some(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.2.f32", "vectors.f32"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "vectors.f32", "<f4").reshape(-1, 8)[10:], some(5))
    assert (tmp_path / "vectors.2.f32").stat().st_size == 5 * 32


def test_nothing_is_touched_before_the_first_write(tmp_path):
    open_extents(str(tmp_path / "absent"), 8).close()
    assert list(tmp_path.iterdir()) == []


def test_paths_and_file_urls_are_the_same_place(tmp_path):
    folder = new_folder(f"file://{tmp_path}", 1)
    assert folder.startswith(f"file://{tmp_path}/gallery-1/")
    crc = open_extents(folder, 8).write(0, 1, some(3))
    plain = folder.removeprefix("file://")
    np.testing.assert_array_equal(open_extents(plain, 8).read(0, 3, 1, crc), some(3))
    assert list_folders(str(tmp_path)) == [plain]
    remove_folder(str(tmp_path), folder)
    assert list_folders(str(tmp_path)) == []


@pytest.mark.parametrize("action", ["io_error", "disk_full"])
def test_a_file_whose_sync_failed_is_never_synced_again(extents, monkeypatch, action):
    synced, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (synced.append(descriptor), sync(descriptor))[1])
    extents.write(0, 1, some(4))
    failpoints.arm(f"written={action}")
    with pytest.raises(UnreachableError):
        extents.write(4, 1, some(4))
    for first in (4, 8):  # the retry of the same claim, and another batch's first one
        with pytest.raises(UnreachableError, match=r"earlier sync of .*vectors\.f32 failed"):
            extents.write(first, 1, some(4))
    assert len(synced) == 1
    np.testing.assert_array_equal(extents.read(4, 4, 2, extents.write(4, 2, some(4))), some(4))
    assert len(synced) == 2


def test_a_sync_that_the_disk_fails_breaks_the_file(extents, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(UnreachableError, match="Input/output error"):
            extents.write(0, 1, some(4))
    with pytest.raises(UnreachableError, match="earlier sync"):
        extents.write(0, 1, some(4))


def test_a_write_beside_a_failing_sync_does_not_pass_for_durable(extents, monkeypatch):
    syncing, go_on, outcomes = threading.Event(), threading.Event(), {}

    def fail_the_first(descriptor):
        if not syncing.is_set():
            syncing.set()
            go_on.wait(30)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(first):
        try:
            outcomes[first] = extents.write(first, 1, some(4))
        except UnreachableError as error:
            outcomes[first] = error

    monkeypatch.setattr(os, "fdatasync", fail_the_first)
    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 4)]
    threads[0].start()
    assert syncing.wait(30)
    threads[1].start()
    threads[1].join(0.3)  # the kernel tells one of them only
    go_on.set()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, UnreachableError) for outcome in outcomes.values())
    assert len(outcomes) == 2


def test_a_folder_whose_sync_failed_breaks_the_file(extents, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UnreachableError, match="Input/output error"):
            extents.write(0, 1, some(4))
    with pytest.raises(UnreachableError, match="earlier sync"):
        extents.write(0, 1, some(4))


def test_a_failed_sync_leaves_no_descriptor_open(extents):
    failpoints.arm("written=io_error")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnreachableError):
        extents.write(0, 1, some(4))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folder_is_synced_when_a_file_appears_and_not_again(extents, tmp_path, monkeypatch):
    folders, sync = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (folders.append(os.readlink(f"/proc/self/fd/{descriptor}")), sync(descriptor)),
    )
    for fence in (1, 1, 2):
        extents.write(0, fence, some(4))
    assert folders == [str(tmp_path)] * 2


def test_a_disk_that_is_full_is_named_by_the_kernel_itself(extents, tmp_path):
    (tmp_path / "vectors.f32").symlink_to("/dev/full")
    with pytest.raises(StoreFullError, match="Free space or move the store"):
        extents.write(0, 1, some(4))
    (tmp_path / "vectors.f32").unlink()
    extents.close()  # a full disk is no failed sync: the same claim may go on when there is space
    np.testing.assert_array_equal(extents.read(0, 4, 1, extents.write(0, 1, some(4))), some(4))


def test_a_full_disk_leaves_no_half_written_array(tmp_path, monkeypatch):
    write_array(str(tmp_path), "rows.u32", np.arange(4, dtype=np.uint32))

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StoreFullError):
            write_array(str(tmp_path), "rows.u32", np.zeros(4, np.uint32))
        table = open_table(str(tmp_path), "adapted.f32", 4, 8)
        table.create()
        table.append(some(4))
        with pytest.raises(StoreFullError):
            table.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.u32"]
    np.testing.assert_array_equal(read_array(str(tmp_path), "rows.u32", "<u4", 4), np.arange(4))


def test_a_store_that_is_not_mounted_is_not_called_corrupt(tmp_path):
    gone = str(tmp_path / "gone")
    for ask in (
        lambda: open_extents(gone, 8).read(0, 4, 1, None),
        lambda: open_extents(gone, 8).write(0, 1, some(4)),
        lambda: read_array(gone, "rows.u32", "<u4", 4),
        lambda: open_table(gone, "adapted.f32", 4, 8).map(),
        lambda: open_table(gone, "adapted.f32", 4, 8).create(),
    ):
        with pytest.raises(UnreachableError, match="bring the store back") as caught:
            ask()
        assert not isinstance(caught.value, CorruptExtentError)


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for ask in (lambda root: new_folder(root, 1), list_folders, probe):
        with pytest.raises(UnreachableError, match=r"Not a directory|File exists"):
            ask(str(tmp_path / "file"))


def test_a_link_out_of_the_root_is_not_followed_at_removal(tmp_path):
    from orchestrator.errors import UsageError

    root, outside = tmp_path / "root", tmp_path / "other" / "gallery-1" / ("0" * 16)
    outside.mkdir(parents=True)
    (root / "gallery-1").mkdir(parents=True)
    link = root / "gallery-1" / ("0" * 16)
    link.symlink_to(outside)
    with pytest.raises(UsageError, match="nothing was removed"):
        remove_folder(str(root), str(link))
    assert outside.is_dir()
    assert list_folders(str(root)) == []


def test_arrays_and_tables_are_memory_mapped(tmp_path):
    write_array(str(tmp_path), "rows.u32", np.arange(4, dtype=np.uint32))
    assert isinstance(read_array(str(tmp_path), "rows.u32", "<u4", 4), np.memmap)
    table = open_table(str(tmp_path), "adapted.f32", 4, 8)
    table.create()
    table.append(some(4))
    table.finish()
    assert isinstance(table.map(), np.memmap)


def test_a_forked_child_writes_and_gets_its_checksum(extents, tmp_path):
    crc = extents.write(0, 1, some(4))
    child = os.fork()
    if child == 0:
        os._exit(17 if extents.write(4, 1, some(4)) == crc else 1)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 17
    np.testing.assert_array_equal(extents.read(4, 4, 1, crc), some(4))
