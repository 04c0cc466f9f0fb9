"""The supervisor with real worker processes: stuck, frozen, killed, ending at once, told to stop, killed itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service.background import worker_environment
from tests.engine import platform

STUCK_S = 4.0


def until(condition, timeout_s=200.0):
    """Wait for something to become true; the time-out is for a hanging test, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


class Supervised:
    """A supervisor process and its log."""

    def __init__(
        self,
        settings,
        log: Path,
        *arguments: str,
        module: str = "workers.supervisor",
        stuck_s: float = 60.0,  # a busy machine is no stuck worker
        **environment: str,
    ):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--stuck-s", str(stuck_s), *arguments],
                env=worker_environment(settings) | environment,
                stderr=output,
                stdout=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    def events(self, name: str) -> list[dict]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def children(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= set(found)
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            self.children()
            self.process.kill()
        self.process.wait()
        for child in self.seen:
            if child.is_running():
                child.kill()


@pytest.fixture
def supervise(settings, tmp_path):
    started = []

    def start(*arguments, **environment):
        log = tmp_path / f"supervisor-{len(started)}.log"
        started.append(Supervised(settings, log, *arguments, **environment))
        return started[-1]

    yield start
    for supervised in started:
        supervised.end()


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def health(context, pid):
    with context.engine.connect() as connection:
        return next((w for w in read_view(connection, "worker_health") if w["pid"] == pid), None)


def audit(context, rollout_id):
    from orchestrator.demo.live import check_nothing_lost

    found = check_nothing_lost(context, rollout_id)
    return found.lost, found.duplicated, found.falsified


def spawned(found, count):
    until(lambda: len(found.events("worker.spawned")) == count)
    return [event["pid"] for event in found.events("worker.spawned")]


def gone(processes):
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize(
    ("action", "why"),
    [("hang", "finished none for"), ("freeze", "no heartbeat for")],
    ids=["hang: the encoder's thread only", "freeze: the whole process"],
)
def test_a_stuck_worker_is_replaced_and_its_batches_are_finished_by_another(world, supervise, action, why):
    row = platform.start(world)
    n_batches = -(-row.n_items // row.batch_size)
    # The first worker gets stuck at its tenth batch; another begins to count anew and has fewer left.
    assert 10 < n_batches < 20
    found = supervise(
        stuck_s=STUCK_S, HOTREFRESH_TESTING="1", HOTREFRESH_FAIL_POINTS=f"mid_encode={action}:10"
    )
    first = until(lambda: found.events("worker.spawned"))[0]["pid"]
    until(lambda: status(world, row.id)["committed"] >= 9 * row.batch_size)
    begun = time.monotonic()
    if action == "hang":
        time.sleep(STUCK_S / 2)
        assert health(world, first)["live"]  # the pulse goes on: it alone would tell nothing
    until(lambda: status(world, row.id)["state"] == "finalizable")
    assert time.monotonic() - begun < 60
    (event,) = found.events("worker.stuck")
    assert event["pid"] == first
    assert why in event["reason"]
    (ended,) = found.events("worker.ended")
    assert (ended["code"], ended["restarts"], ended["restart_in_s"]) == (-signal.SIGKILL, 1, 0.5)
    assert audit(world, row.id) == (0, 0, 0)
    until(lambda: not health(world, first)["live"])
    assert health(world, first)["last_error"] == event["reason"]


def test_an_idle_worker_is_left_alone(world, supervise):
    found = supervise(stuck_s=STUCK_S)
    pid = until(lambda: found.events("worker.spawned"))[0]["pid"]
    until(lambda: health(world, pid))
    time.sleep(STUCK_S + 2.5)
    assert found.events("worker.stuck") == []
    assert health(world, pid)["live"]
    assert "torch" not in Path(f"/proc/{found.process.pid}/maps").read_text()
    assert "torch" in Path(f"/proc/{pid}/maps").read_text()  # else the line above could not fail


def test_a_killed_worker_is_restarted_and_its_batches_are_free_at_once(world, supervise):
    """With a lease of ten minutes: only the supervisor can have let it run out."""
    row = platform.start(world, lease_s=600.0)
    found = supervise(HOTREFRESH_TESTING="1", HOTREFRESH_FAIL_POINTS="mid_encode=kill:10")
    until(lambda: status(world, row.id)["state"] == "finalizable")
    (ended,) = found.events("worker.ended")
    assert ended["code"] == -signal.SIGKILL
    assert len(found.events("worker.spawned")) == 2
    assert audit(world, row.id) == (0, 0, 0)


def test_five_fast_exits_trip_with_the_last_words(settings, supervise):
    found = supervise(
        HOTREFRESH_FAIL_POINTS="heard=kill"
    )  # refused: the process is not told that it is a test
    assert found.process.wait(timeout=300) == 1
    assert [event["restarts"] for event in found.events("worker.ended")] == [1, 2, 3, 4, 5]
    assert [event["restart_in_s"] for event in found.events("worker.ended")] == [0.5, 1, 2, 4, 8]
    last = found.log.read_text().splitlines()[-1]
    assert last.startswith(
        "error: worker 1 ended 5 times in a row right after its start, last with exit code "
    )
    assert "this process would damage itself on purpose" in last


def test_sigterm_ends_every_process_and_the_workers_sign_off(world, supervise):
    found = supervise("--processes", "2")
    pids = spawned(found, 2)
    until(lambda: all(health(world, pid) for pid in pids))
    until(lambda: len(found.events("worker.started")) == 2)
    children = found.children()
    assert {child.pid for child in children} >= set(pids)
    time.sleep(1)  # Celery takes a moment until it listens to signals
    found.process.send_signal(signal.SIGTERM)
    assert found.process.wait(timeout=30) == 0
    assert gone(children)
    assert [health(world, pid)["live"] for pid in pids] == [False, False]
    assert len(found.events("worker.stopped")) == 2  # they were asked, not killed; their lines came through


def test_a_second_signal_does_not_wait_for_a_worker_that_does_not_end(world, supervise):
    row = platform.start(world)
    found = supervise(HOTREFRESH_TESTING="1", HOTREFRESH_FAIL_POINTS="mid_encode=hang:1")
    (first,) = until(lambda: found.events("worker.started"))
    until(lambda: status(world, row.id)["leased"] > 0)
    children = found.children()
    found.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert found.process.poll() is None, f"{first} should still be waited for"
    found.process.send_signal(signal.SIGINT)
    assert found.process.wait(timeout=8) == 0
    assert gone(children)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux kills children with their parent"
)
def test_workers_die_with_a_supervisor_that_is_killed(world, supervise):
    found = supervise("--processes", "2")
    pids = spawned(found, 2)
    until(lambda: all(health(world, pid) for pid in pids))
    children = found.children()
    found.process.kill()
    found.process.wait()
    until(lambda: gone(children), timeout_s=5)


def test_workers_that_leave_idle_are_not_replaced(world, supervise):
    found = supervise("--exit-when-idle", "0.5")
    assert found.process.wait(timeout=200) == 0
    assert len(found.events("worker.spawned")) == 1
    assert len(found.events("worker.retired")) == 1


def test_nobody_is_judged_while_the_ledger_is_away(world, supervise, servers):
    """Away for four heartbeats of 2 s; a worker may be silent for three."""
    found = supervise(stuck_s=STUCK_S, HOTREFRESH_HEARTBEAT_S="2")
    (pid,) = spawned(found, 1)
    first = until(lambda: (row := health(world, pid)) and row["last_heartbeat"])
    until(lambda: health(world, pid)["last_heartbeat"] > first)
    time.sleep(1.3)  # a look has seen this beat: what it sees after the outage will be the same
    name = world.engine.url.database
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        until(lambda: len(found.events("heartbeat.failed")) == 4)  # the next is 2 s away, a look 1 s at most
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    away = health(world, pid)["last_heartbeat"]
    until(lambda: health(world, pid)["last_heartbeat"] > away or found.events("worker.stuck"))
    time.sleep(1.5)  # a look or two more
    assert len(found.events("supervisor.ledger_unreachable")) == 1
    assert found.events("worker.stuck") == []
    assert len(found.events("worker.spawned")) == 1


def test_the_command_becomes_a_supervisor_and_asks_for_it_where_it_is_needed(settings):
    command = [sys.executable, "-P", "-m", "cli.main", "worker", "--processes", "2"]
    environment = worker_environment(settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--processes 2 needs --supervise" in done.stderr
    command += ["--supervise", "--stuck-s", "30", "--exit-when-idle", "0.5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr.count('"worker.retired"') == 2


SCRIPT = """
import sys
from orchestrator.settings import load_settings
from workers.supervisor import Supervisor
supervisor = Supervisor(load_settings())
supervisor._command = [sys.executable, "-c", sys.argv[1]]
sys.exit(supervisor.run())
"""


def test_a_start_that_fails_slowly_is_a_fast_exit_too(settings):
    """On a machine with too much to do, a worker that cannot start lives longer than the seconds of a fast exit."""
    slow = SCRIPT.replace(
        "supervisor = ", "import workers.supervisor as s; s.FAST_EXIT_S = 0.0\nsupervisor = ", 1
    )
    done = subprocess.run(
        [sys.executable, "-c", slow, "raise SystemExit('no such camera')"],
        env=worker_environment(settings) | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "ended 5 times in a row right after its start" in done.stderr
    assert "no such camera" in done.stderr


def test_a_sticky_gpu_error_is_restarted_and_counted(settings, tmp_path):
    log = tmp_path / "log"
    once = tmp_path / "once"
    child = f"import os, sys, time; first = not os.path.exists({str(once)!r}); open({str(once)!r}, 'w'); "
    child += "sys.exit(70) if first else time.sleep(600)"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, child],
            env=worker_environment(settings) | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: log.read_text().count("worker.spawned") == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    events = {event["event"]: event for event in map(json.loads, log.read_text().splitlines())}
    assert events["worker.ended"]["code"] == 70
    assert events["supervisor.stopped"]["gpu_errors"] == 1
