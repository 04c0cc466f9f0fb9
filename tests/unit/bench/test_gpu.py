"""The GPU's benchmark: what it says without a GPU, and that its row 7 runs the same code on a CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench import gpu, gpu_uncertainty
from bench.gpu_uncertainty import Size, same_segments
from cli import bench as command
from cli.main import main
from models.errors import UsageError

CPU = torch.device("cpu")
TINY = Size(N=600, C=20, d=16, B=50, square=64)


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_gpu_there_are_no_rows_but_a_reason_and_nothing_is_opened(no_gpu):
    said: list[str] = []
    result = gpu.run(say=said.append)
    assert result["rows"] == []
    assert result["reason"] == said[0]
    assert "no GPU" in result["reason"]
    assert "driver" in result["reason"]
    assert not list(no_gpu.iterdir())


def test_the_command_says_no_gpu_and_succeeds(no_gpu, capsys):
    assert main(["bench", "gpu", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == []
    assert "no GPU" in document["reason"]
    assert main(["bench", "gpu"]) == 0
    assert "no GPU" in capsys.readouterr().out


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(no_gpu):
    with pytest.raises(UsageError, match="torch sees 0 GPUs"):
        gpu.run(device="cuda:0")


def test_a_benchmark_without_devices_refuses_the_option():
    with pytest.raises(UsageError, match="leave --device out"):
        command._wanted(lambda settings: None, "cpu")
    assert command._wanted(lambda device: None, "cpu") == {"device": "cpu"}
    assert command._wanted(lambda device=None: None, None) == {}


@pytest.mark.parametrize("compiled", [False, True])
def test_row_7_runs_on_a_cpu_and_every_plan_is_identical(monkeypatch, compiled):
    if compiled and not gpu_uncertainty.can_compile():
        pytest.skip("torch.compile finds no C++ compiler: install g++")
    monkeypatch.setattr(gpu_uncertainty, "SMALL", TINY)
    monkeypatch.setattr(gpu_uncertainty, "can_compile", lambda: compiled)
    rows = gpu_uncertainty.measure(CPU, repeats=2, small=True)
    scores, plans = rows[: 1 + compiled], rows[1 + compiled :]
    assert [row.row for row in rows] == [7] * (4 + compiled)
    assert all("float32 matrix product" in row.against for row in scores)
    assert [", not compiled," in row.name for row in scores] == [True, False][: 1 + compiled]
    assert all(", identical," in row.name for row in plans)
    assert all("N = 600, C = 20, d = 16, seed 0" in row.name for row in rows)
    assert all(row.value > 0 and row.ratio > 0 for row in rows)


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    assert not gpu_uncertainty.can_compile()


def test_a_plan_that_differs_is_said_to_differ_and_does_not_hold(monkeypatch):
    monkeypatch.setattr(gpu_uncertainty, "SMALL", TINY)
    monkeypatch.setattr(gpu_uncertainty, "can_compile", lambda: False)
    monkeypatch.setattr(gpu_uncertainty, "order_rows", lambda scores: np.arange(len(scores), dtype=np.uint32))
    rows = gpu_uncertainty.measure(CPU, repeats=2, small=True)
    assert all("NOT IDENTICAL" in row.name and row.holds is False for row in rows[1:])


def test_segments_are_the_same_in_any_order_inside_them_only():
    expected = np.array([3, 1, 0, 2], np.uint32)
    cuts = np.array([2])
    assert same_segments(np.array([1, 3, 2, 0], np.uint32), expected, cuts)
    assert not same_segments(np.array([3, 0, 1, 2], np.uint32), expected, cuts)


def test_the_benchmarks_gallery_is_normalised_and_reaches_from_sure_to_unsure():
    embeddings, prototypes = gpu_uncertainty.gallery(TINY)
    for vectors in (embeddings, prototypes):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    nearest = (embeddings @ prototypes.T).max(axis=1)
    assert nearest.min() < 0.6
    assert nearest.max() > 0.95
