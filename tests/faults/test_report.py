"""The report adds up what one run found, forgets older runs, and says where a target is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import report


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "FILE", tmp_path / "faults.json")


def kills(**more: object) -> report.Figures:
    return report.Figures("kills", "0 lost", 10, met=True, **more)  # type: ignore[arg-type]


def test_figures_of_one_run_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    report.record(kills(recovery_s=[1.0], lost=1))
    report.record(kills(recovery_s=[3.0, 2.0]))
    assert report.main(report.FILE) == 0
    assert "| kills | 20 | 1 | 0 | 0 | 0 | 2.00 / 3.00 / 3.00 | 0 lost | yes |" in capsys.readouterr().out


def test_an_older_run_is_replaced() -> None:
    report.record(kills(run="older"))
    report.record(kills())
    with report._locked() as stored:
        assert stored["kills"]["injected"] == 10


def test_figures_left_over_from_an_older_run_are_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    report.record(report.Figures("starts", "one winner", 1, met=True, run="older"))
    report.record(kills())
    assert report.main(report.FILE) == 1
    assert "| older run |" in capsys.readouterr().out


def test_a_missed_target_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    report.record(kills())
    report.record(report.Figures("kills", "0 lost", 1, met=False))
    assert report.main(report.FILE) == 1
    assert "**no**" in capsys.readouterr().out


def test_nothing_recorded_is_no_success(tmp_path: Path) -> None:
    assert report.main(tmp_path / "none.json") == 1


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_quantiles_are_values_that_were_seen(share: float, expected: int) -> None:
    assert report.quantile(list(range(100, 0, -1)), share) == expected
