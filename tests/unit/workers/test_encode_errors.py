"""What an encoder's error means, by its kind and by the words of CUDA."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
import torch

from models.errors import ArtifactError, ItemError
from orchestrator.errors import UnreachableError
from workers import encode_errors
from workers.encode_errors import end_if_sticky, out_of_memory, permanent, sticky, transient

STICKY = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    "CUDA error: uncorrectable ECC error encountered",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
]
SHORT = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
LATER = [
    ConnectionResetError(), TimeoutError(), UnreachableError("x"), OSError(errno.EIO, "x"), OSError(errno.ENOSPC, "x"),
]  # fmt: skip
NEVER = [
    ItemError("corrupt", "x"), ArtifactError("x"), ValueError("x"), KeyError("x"), ZeroDivisionError(),
    FileNotFoundError(errno.ENOENT, "x"),
]  # fmt: skip
UNKNOWN = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    Exception("x"),
    OSError(errno.EXDEV, "x"),
]


def verdict(error):
    return sticky(error), out_of_memory(error), transient(error), permanent(error)


@pytest.mark.parametrize("text", STICKY)
def test_after_a_sticky_cuda_error_nothing_else_is_said(text):
    assert verdict(RuntimeError(text)) == (True, False, False, False)


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_short_memory_is_transient_on_the_device_and_on_the_host(error):
    assert verdict(error) == (False, True, True, False)


@pytest.mark.parametrize("error", LATER, ids=repr)
def test_what_others_may_mend_is_transient(error):
    assert verdict(error) == (False, False, True, False)


@pytest.mark.parametrize("error", NEVER, ids=repr)
def test_what_would_fail_again_is_permanent(error):
    assert verdict(error) == (False, False, False, True)


@pytest.mark.parametrize("error", UNKNOWN, ids=repr)
def test_an_error_on_no_list_is_neither(error):
    assert verdict(error) == (False, False, False, False)


def test_numpys_memory_error_counts():
    import numpy as np

    with pytest.raises(MemoryError) as caught:
        np.empty(2**50)
    assert out_of_memory(caught.value)


def raised_from(cause):
    wrapped = ArtifactError("own:factory could not embed")
    wrapped.__cause__ = cause
    return wrapped


def test_the_cause_decides_where_an_encoder_wraps_its_errors():
    assert sticky(raised_from(RuntimeError(STICKY[0])))
    assert out_of_memory(raised_from(MemoryError()))
    assert transient(raised_from(ConnectionResetError()))
    assert permanent(raised_from(ValueError()))


def test_a_circle_of_causes_ends():
    one, two = Exception("1"), Exception("2")
    one.__cause__, two.__cause__ = two, one
    assert verdict(one) == (False, False, False, False)


def test_an_items_text_that_quotes_cuda_does_not_end_the_worker(monkeypatch):
    monkeypatch.setattr(encode_errors.os, "_exit", lambda code: pytest.fail("the process would have ended"))
    end_if_sticky(ItemError("corrupt", f"the text {STICKY[0]!r} is too long"))
    end_if_sticky(ValueError(STICKY[1]))
    end_if_sticky(MemoryError())


def test_a_sticky_error_ends_the_process_at_once_with_its_own_exit_code():
    script = f"""
import atexit
from workers.encode_errors import end_if_sticky
atexit.register(print, "cleaned up")
try:
    end_if_sticky(RuntimeError({STICKY[1]!r}))
finally:
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (70, "")
    (line,) = done.stderr.splitlines()
    said = json.loads(line)
    assert (said["event"], said["exit_code"]) == ("device.lost", 70)
    assert "device-side assert" in said["message"]
