"""Strategies by command: what `plan` shows, what `start` prints next, and one clear line for what cannot be."""

from __future__ import annotations

import json

import pytest

from orchestrator.errors import ExitCode
from orchestrator.service.evaluate import evaluate_rollout
from tests.engine import platform
from tests.engine.strategies import register_adapter


@pytest.fixture
def hotrefresh(context, hotrefresh, tmp_path):
    """Runs a command on gallery `pics` with adapters of both directions between `old` and `kin`."""
    platform.embedded_gallery(context, tmp_path)
    register_adapter(context, tmp_path, "old", "kin")
    register_adapter(context, tmp_path, "kin", "old")
    return hotrefresh


@pytest.mark.parametrize(
    ("adapter", "options", "strategy"),
    [("old-to-kin", ("--strategy", "transform"), "transform"), ("kin-to-old", (), "query-adapter")],
)
def test_from_certificate_to_finalize_by_command(context, hotrefresh, adapter, options, strategy):
    start = ("pics", "--to", "kin", "--adapter", adapter, *options)
    pair = ("old", "kin", "--gallery", "pics", "--adapter", adapter)
    assert hotrefresh("model", "certify", *pair, "--minimum-queries", 20)[0] == ExitCode.DONE
    code, out, err = hotrefresh("rollout", "plan", *start, "-o", "json")
    planned = json.loads(out)
    assert (code, planned["strategy"], planned["batches"], planned["first_items"]) == (0, strategy, 0, [])
    assert f"rollout start {' '.join(start)}" in err
    assert hotrefresh("rollout", "plan", *start)[0] == ExitCode.DONE
    code, out, err = hotrefresh("rollout", "start", *start, "--wait")
    assert code == ExitCode.DONE
    assert "hotrefresh rollout finalize 2" in err
    evaluate_rollout(context, 2, {})
    code, out, _ = hotrefresh("rollout", "status", "pics@latest")
    assert code == ExitCode.DONE
    assert strategy in out
    assert "no item is embedded anew" in out
    shown = json.loads(hotrefresh("rollout", "status", "pics@latest", "-o", "json")[1])
    assert (shown["strategy"], shown["total"], shown["coverage"]) == (strategy, 0, None)
    listed = json.loads(hotrefresh("rollout", "list", "pics", "-o", "json")[1])["rollouts"]
    assert [row["strategy"] for row in listed] == [strategy, "reembed"]
    assert hotrefresh("rollout", "finalize", "pics@latest")[0] == ExitCode.DONE
    assert hotrefresh("rollout", "rollback", "pics@latest", "--yes")[0] == ExitCode.DONE


def test_what_cannot_be_is_one_line_with_what_fits(hotrefresh):
    for verb in ("plan", "start"):
        code, _, err = hotrefresh("rollout", verb, "pics", "--to", "kin", "--strategy", "transform")
        assert code == ExitCode.USAGE
        assert "'transform' needs an adapter from the stored model to the new one" in err
        assert "Traceback" not in err
