"""By command: a canary from its start to its end, its shadow, and the guard; and what each says that is not possible."""

from __future__ import annotations

import json

import pytest

from orchestrator.core.traffic import Split
from orchestrator.errors import ExitCode
from orchestrator.service import traffic
from orchestrator.service.rollouts import reread, rollback
from tests.engine import platform
from tests.engine.test_calibration import certified_by_hand
from tests.engine.test_traffic import KEYS, Server, sticky_of


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def refused(hotrefresh):
    """Runs a command that must fail with a code, and say something."""

    def run(code, why, *arguments):
        got, out, err = hotrefresh(*arguments)
        assert (got, out) == (code, ""), (arguments, err)
        assert why in err, (arguments, err)

    return run


def document(ran):
    code, out, err = ran
    assert code == 0, err
    return json.loads(out)


def start(world, hotrefresh, *options):
    """`rollout start` to kin, without the worker that it would start."""
    code, out, err = hotrefresh("rollout", "start", "pics", "--to", "kin", *options, "-o", "json")
    assert code == 0, err
    return json.loads(out)["id"]


@pytest.fixture
def no_worker(monkeypatch):
    monkeypatch.setattr("cli.rollout.start_worker", lambda *_: None)


def test_a_canary_from_its_start_to_its_end(world, hotrefresh, refused, no_worker):
    refused(ExitCode.NOT_FOUND, "no rollout", "rollout", "canary", "999", "10")
    refused(ExitCode.NOT_FOUND, "no rollout", "rollout", "promote", "999")
    refused(ExitCode.NOT_FOUND, "no rollout", "ledger", "shadow", "999")
    for wrong in (("--canary", "101"), ("--canary", "-1"), ("--shadow", "1.5"), ("--canary", "ten")):
        refused(ExitCode.USAGE, wrong[0], "rollout", "start", "pics", "--to", "kin", *wrong)
    both = ("--canary", "100", "--shadow", "0.5")
    refused(ExitCode.USAGE, "there is no shadow", "rollout", "start", "pics", "--to", "kin", *both)

    row = start(world, hotrefresh, "--shadow", "0.5")
    assert traffic.under_way(world, row) == Split(0.0, 0.5), "a shadow alone is a canary of nought"
    refused(ExitCode.USAGE, "percent", "rollout", "canary", "pics", "101")
    refused(ExitCode.USAGE, "--shadow", "rollout", "canary", "pics", "--shadow", "2")
    code, out, err = hotrefresh("rollout", "canary", "pics", "12.5")
    assert (code, out) == (0, "")
    assert f"the new system answers 12.5 % of the traffic of rollout {row}, both answer 50 %" in err
    assert f"ledger shadow {row}" in err
    assert document(hotrefresh("rollout", "canary", row, "12.5", "-o", "json")) == {
        "schema_version": 1, "rollout": row, "state": "deployed", "canary": 12.5, "shadow": 0.5,
    }  # fmt: skip

    assert document(hotrefresh("ledger", "shadow", "pics", "-o", "json"))["shadow"] == []
    server = Server(world)
    for key in KEYS * 2:
        server.ask(key, sticky_of(row, new=False, percent=12.5))
        server.settle()
    server.traffic.close()
    compared = traffic_of(world, row)
    [told] = document(hotrefresh("ledger", "shadow", "pics", "-o", "json"))["shadow"]
    assert (told["rollout"], told["n"], told["k"]) == (row, compared, 10)
    code, out, err = hotrefresh("ledger", "shadow", "pics")
    assert (code, out.split()[:3]) == (0, ["coverage", "from", "n"])
    assert f"rollout canary {row} 10" in err
    samples = document(hotrefresh("ledger", "shadow", row, "--samples", "-o", "json"))["shadow"]
    assert samples
    assert (
        len(
            document(hotrefresh("ledger", "shadow", row, "--samples", "--limit", "1", "-o", "json"))["shadow"]
        )
        == 1
    )
    refused(ExitCode.USAGE, "--limit", "ledger", "shadow", row, "--limit", "0")

    platform.work(world, row)
    refused(ExitCode.CONFLICT, "canary: the new system answers 12.5 %", "rollout", "finalize", row)
    code, out, err = hotrefresh("rollout", "promote", "pics")
    assert (code, out, reread(world, row).state) == (0, "", "finalizable")
    assert f"the new system answers 100 % of the traffic of rollout {row}" in err
    assert f"rollout status {row}" in err
    refused(ExitCode.CONFLICT, "its canary is over", "rollout", "canary", row, "50")
    code, _, err = hotrefresh("rollout", "promote", row)
    assert (code, reread(world, row).state) == (0, "finalized"), err
    refused(ExitCode.CONFLICT, "is finalized: canary is not possible", "rollout", "canary", row, "50")


def traffic_of(world, row):
    """How many queries were compared."""
    with world.engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT sum(n) FROM shadow_count WHERE rollout_id = {row}"
        ).scalar_one()
    assert found > 0
    return int(found)


def test_without_a_canary_there_is_none_to_change_and_promote_is_finalize(
    world, hotrefresh, refused, no_worker
):
    row = start(world, hotrefresh)
    refused(ExitCode.CONFLICT, "was started without a canary", "rollout", "canary", "pics", "50")
    refused(ExitCode.CONFLICT, "open_items", "rollout", "promote", "pics")
    refused(
        ExitCode.CONFLICT, "canary is not possible", "rollout", "canary", "1", "50"
    )  # the first embedding
    rollback(world, row)
    refused(ExitCode.CONFLICT, "is rolled_back: canary is not possible", "rollout", "canary", row, "50")
    refused(ExitCode.CONFLICT, "rolled_back", "rollout", "promote", row)
    row = start(world, hotrefresh, "--canary", "100")
    assert traffic.under_way(world, row) is None


def test_the_options_of_the_guard(world, tmp_path, hotrefresh, refused, no_worker):
    platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    certified_by_hand(world)
    to = ("pics", "--to", "far", "--prototypes", "classes")
    refused(ExitCode.USAGE, "choose one of auto, off", "rollout", "start", *to, "--calibration", "on")
    refused(ExitCode.USAGE, "no guard for this rollout", "rollout", "start", "pics", "--to", "kin", "--guard")
    off = ("--guard", "--calibration", "off")
    for verb in ("plan", "start"):
        refused(ExitCode.USAGE, "drop `--calibration off`", "rollout", verb, *to, *off)
    code, out, err = hotrefresh("rollout", "plan", *to, "--guard", "-o", "json")
    assert (code, set(json.loads(out)["config"]["guard"]) >= {"low", "high"}) == (0, True), err
    assert "rollout start pics --to far --prototypes classes --guard" in err
    assert json.loads(hotrefresh("rollout", "plan", *to, "-o", "json")[1])["config"]["guard"] is None
    code, out, err = hotrefresh("rollout", "start", *to, "--guard", "-o", "json")
    assert code == 0, err
    row = reread(world, json.loads(out)["id"])
    assert row.config["guard"]["low"] < row.config["guard"]["high"]
