"""The GPU's benchmark drains real rollouts on a CPU too; how long they take is not looked at."""

from __future__ import annotations

import json

from bench import gpu, gpu_uncertainty
from models.encoders.images import ImagePreprocessing


def test_the_whole_worker_is_measured_on_a_cpu_by_the_same_code(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SMALL", gpu.Size(40, 16, {"width": 16, "depth": 1}, ImagePreprocessing(), 8))
    monkeypatch.setattr(gpu_uncertainty, "SMALL", gpu_uncertainty.Size(300, 10, 8, 50, 64))
    monkeypatch.setattr(gpu_uncertainty, "can_compile", lambda: False)
    result = gpu.run(settings, device="cpu", repeats=2, folder=tmp_path)
    assert [row["row"] for row in result["rows"]] == [7, 7, 7, 7, 15, 5]
    assert {row["holds"] for row in result["rows"]} == {None}, "a CPU says nothing about a GPU's targets"
    whole, busy = result["rows"][4:]
    assert "N = 40, d = 8, B = 16" in whole["name"]
    assert whole["value"] > 0
    assert 0 < busy["value"] <= 1
    assert (result["host"]["device"], result["host"]["repeats"]) == ("cpu", 2)
    assert json.loads((tmp_path / "gpu.json").read_text()) == result
    assert not list(settings.data_dir.glob("bench-*"))
