"""How the kernel is compiled; what it answers is in test_codes."""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest

from models.codecs.codes import CodeShape
from orchestrator.core import keys
from orchestrator.index import IndexOptions, make_index, popcount
from orchestrator.index.code_blocks import CodeBlocks, empty_heaps, mask


def test_a_key_of_the_kernel_is_a_key_of_the_core():
    scores = np.array([1, 0.25, 0, -1e-30, -0.5, -1], np.float32)
    made = [popcount._key(score, row) for row, score in enumerate(scores)]
    np.testing.assert_array_equal(np.array(made, np.uint64), keys.pack(scores, np.arange(6)))


def test_where_nothing_can_be_kept_on_disk_it_compiles_all_the_same(monkeypatch):
    def without_disk(function, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(function, **options)

    monkeypatch.setattr(popcount, "njit", without_disk)
    assert popcount._compiled(lambda x: x + 1)(2) == 3


def test_the_processor_counts_the_bits_of_several_rows_at_once():
    """With AVX-512's VPOPCNTQ two instructions of eight rows for each pair of planes; elsewhere nothing is promised."""
    if numba.core.codegen.get_host_cpu_features().find("+avx512vpopcntdq") < 0:
        pytest.skip("this processor has no VPOPCNTQ")
    fresh = numba.njit(popcount.scan.py_func)  # what comes out of numba's cache has no listing
    held = CodeBlocks(CodeShape(64, 2), 1)
    query = np.zeros((1, 64), np.uint8)
    fresh(
        held.words, held.inverse, held.squares, held.words_of(query).reshape(1, -1), np.ones(1), held.planes, held.most,
        mask(None, 1), empty_heaps(1, 1),
    )  # fmt: skip
    [written] = fresh.inspect_asm().values()
    assert len(re.findall(r"vpopcntq\s.*zmm", written)) >= 2 * 9


def test_searches_run_while_python_does():
    """The interpreter's lock is given up: shards are scanned side by side."""
    assert popcount.scan.targetoptions["nogil"] is True
    assert popcount.scan_lists.targetoptions["nogil"] is True


def test_the_kernel_is_compiled_when_an_index_is_made(monkeypatch):
    called = []
    real = popcount.scan
    monkeypatch.setattr("orchestrator.index.codes.scan", lambda *args: called.append(1) or real(*args))
    shape = CodeShape(9, 1)
    make_index("codes", shape.unit(np.ones((3, 9), np.uint8)), IndexOptions(code=shape))
    assert called
