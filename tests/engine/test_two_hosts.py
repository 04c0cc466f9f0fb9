"""The topology of docker-compose.yml as processes: two worker hosts that share database, broker and store, and no folder."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.service import background
from orchestrator.settings import Settings
from tests.contract import stores
from tests.faults import ledger, oracle, world
from tests.faults.crew import until
from tests.faults.encoder import PACE
from tests.faults.volume import ROOT

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def operator(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """The operator's machine: registers models, embeds the gallery, starts rollouts. Its model folder is its own."""
    monkeypatch.setenv(
        "PYTHONPATH", str(ROOT)
    )  # where the test's encoder is, as a package of the user's would be
    mine = settings.model_copy(
        update={"store_dir": f"s3://{stores.BUCKET}/hosts", "data_dir": tmp_path / "operator"}
    )
    with stores.s3_server() as (_, endpoint):
        stores.point_at(monkeypatch, endpoint)
        with open_context(mine) as context:
            world.build(context, tmp_path / "world", 480)
            yield context


def start_host(operator: Context, folder: Path) -> subprocess.Popen[bytes]:
    """A worker on a host of its own: other folders for data, models and logs, and an empty home."""
    folder.mkdir()
    settings = operator.settings.model_copy(update={"data_dir": folder, "model_dir": folder / "models"})
    environment = background.worker_environment(settings) | {"HOME": str(folder), PACE: "0.02"}
    with (folder / "worker.log").open("wb") as log:
        return subprocess.Popen(
            background.worker_command(None), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )  # fmt: skip


def owners(context: Context, rollout_id: int) -> set[int]:
    """Process ids that hold or held batches at this moment."""
    found = [lease.owner for lease in ledger.leases(context, rollout_id) if lease.owner]
    return {int(owner.rsplit("-", 2)[1]) for owner in found}


def test_hosts_that_share_no_folder_finish_a_rollout_and_one_may_die(
    operator: Context, tmp_path: Path
) -> None:
    # What the operator's machine has on its disk is not there for the others.
    hidden = operator.settings.artifacts.rename(tmp_path / "not-there")
    hosts = [start_host(operator, tmp_path / name) for name in ("host-a", "host-b")]
    try:
        row = world.begin(operator, batch_size=8, lease_s=2.0)
        seen: set[int] = set()
        until(
            lambda: bool(seen.update(owners(operator, row.id)) or {h.pid for h in hosts} <= seen),
            "both hosts work",
        )
        hosts[0].send_signal(signal.SIGKILL)
        hosts[0].wait()
        until(lambda: ledger.state(operator, row.id) == "finalizable", "the other host ends the rollout")
        hosts[1].send_signal(signal.SIGTERM)
        assert hosts[1].wait(timeout=60) == 0
    finally:
        for host in hosts:
            if host.poll() is None:
                host.kill()
            host.wait()
    fetched = [path.name for path in (tmp_path / "host-b" / "models").iterdir()]
    assert len(fetched) >= 1, "the worker had no artifact of its own"
    hidden.rename(operator.settings.artifacts)
    truth = oracle.check(operator, row.id)
    assert truth.sound, truth
    assert oracle.check_serving(operator, row.id).sound
