"""Real worker processes: woken by message or by their own look, killed with SIGKILL, left without a broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.bootstrap import open_context
from orchestrator.ledger.database import HEAD
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import background, embed, galleries, wakeups
from orchestrator.service import start as starting
from tests.engine import platform


def until(condition, timeout_s=60.0):
    """Wait for something to become true; the time-out is for a hanging test, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def workers(world):
    """Starts worker processes; those left at the end are killed."""
    started = []

    def start():
        started.append(background.start_worker(world))
        return started[-1]

    yield start
    for worker in started:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def audit(context, rollout_id):
    from orchestrator.demo.live import check_nothing_lost

    return check_nothing_lost(context, rollout_id)


def test_a_worker_is_woken_works_to_the_end_and_evaluates(world, workers):
    workers()
    row = platform.start(world)
    until(lambda: status(world, row.id)["state"] == "finalizable")
    batches = row.n_items // row.batch_size

    def evaluated():
        with world.engine.connect() as connection:
            return len(read_view(connection, "flip_summary", rollout=row.id)) == batches + 1

    until(evaluated)
    found = audit(world, row.id)
    assert (found.lost, found.duplicated, found.falsified) == (0, 0, 0)


def test_a_worker_killed_with_sigkill_loses_nothing_and_doubles_nothing(world, workers, tmp_path):
    galleries.create_gallery(world, "many", str(platform.draw_pictures(tmp_path / "more", per_class=60)))
    row = embed.embed_gallery(world, "many", "old", batch_size=8)
    kills = 0
    for wanted in (20, 120, 220):
        worker = workers()
        until(
            lambda wanted=wanted: (
                status(world, row.id)["committed"] >= wanted * 8
                or status(world, row.id)["state"] == "finalized"
            )
        )
        if status(world, row.id)["state"] != "finalized":
            worker.send_signal(signal.SIGKILL)
            kills += 1
        worker.wait()
    workers()
    until(lambda: status(world, row.id)["state"] == "finalized")
    found = audit(world, row.id)
    assert kills >= 1
    assert (found.lost, found.duplicated, found.falsified) == (0, 0, 0)


def test_a_lost_wake_up_changes_nothing_the_worker_looks_by_itself(world, workers, monkeypatch):
    monkeypatch.setattr(world.broker, "ring", lambda *arguments: None)  # the message goes nowhere
    row = platform.start(world)
    workers()
    until(lambda: status(world, row.id)["state"] == "finalizable")


def test_start_stands_with_the_broker_away_and_a_later_worker_finds_it(world):
    away = world.settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with open_context(away) as context:
        row = platform.start(context)
    assert row.state == "deployed"
    worker = background.start_worker(world)
    try:
        until(lambda: status(world, row.id)["state"] == "finalizable")
    finally:
        worker.kill()
        worker.wait()


def test_sigterm_finishes_the_batch_at_hand_and_signs_off(world, workers, tmp_path):
    galleries.create_gallery(world, "many", str(platform.draw_pictures(tmp_path / "more", per_class=60)))
    row = embed.embed_gallery(world, "many", "old", batch_size=8)
    worker = workers()
    until(lambda: status(world, row.id)["committed"] > 0)
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    with world.engine.connect() as connection:
        health = read_view(connection, "worker_health")
        assert [w["live"] for w in health if w["pid"] == worker.pid] == [False]
        left = batch_queries.next_due_s(connection, row.id)
    assert status(world, row.id)["leased"] == 0
    assert left in (0.0, None)


def test_a_worker_without_work_leaves_by_itself(world, workers, monkeypatch):
    idle = world.settings.model_copy(update={"worker_idle_s": 0.5})
    world.settings = idle
    assert workers().wait(timeout=30) == 0


def test_a_worker_that_is_told_to_stop_before_it_listens_signs_off_and_ends(world, workers):
    worker = workers()

    def registered():
        with world.engine.connect() as connection:
            return [row for row in read_view(connection, "worker_health") if row["pid"] == worker.pid]

    until(registered)
    worker.send_signal(signal.SIGTERM)  # Celery has not loaded its commands yet
    assert worker.wait(timeout=120) == 0
    assert [row["live"] for row in registered()] == [False]


def test_a_worker_has_no_idle_time_before_messages_can_come(world, workers):
    world.settings = world.settings.model_copy(update={"worker_idle_s": 1e-6})
    assert workers().wait(timeout=120) == 0
    lines = background.worker_log(world.settings).read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    told = [
        event
        for event in events
        if event in {"worker.started", "worker.listening", "worker.idle", "worker.stopped"}
    ]
    assert told == ["worker.started", "worker.listening", "worker.idle", "worker.stopped"]


def test_two_workers_share_a_rollout_without_doubling_anything(world, workers, tmp_path):
    galleries.create_gallery(world, "many", str(platform.draw_pictures(tmp_path / "more", per_class=30)))
    workers()
    workers()
    row = embed.embed_gallery(world, "many", "old", batch_size=8)
    for _ in range(20):
        wakeups.wake(world, "drain", row.id)  # doubled messages
    until(lambda: status(world, row.id)["state"] == "finalized")
    found = audit(world, row.id)
    assert (found.lost, found.duplicated, found.falsified) == (0, 0, 0)


def test_of_many_starts_at_once_exactly_one_wins(world):
    outcomes: list[str] = []

    def begin() -> None:
        with open_context(world.settings) as context:
            try:
                outcomes.append(platform.start(context, order="random").state)
            except Exception as error:  # noqa: BLE001
                outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ConflictError"] * 7 + ["deployed"]


def test_a_search_during_the_whole_refresh_never_fails(world, workers):
    from orchestrator.demo.live import hot_refresh, wait_for_evaluation
    from orchestrator.ledger.queries import galleries as gallery_queries

    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        query = gallery_queries.items_of_rows(connection, gallery.id, [0])[0]
    from models.datasets import read_item

    request = starting.StartRequest("pics", "kin", prototypes="classes", lease_s=2.0, batch_size=4)
    seen, _ = hot_refresh(
        world,
        gallery,
        request,
        read_item(query.uri),
        workers(),
        kill_at=None,
        shown=lambda coverage, row: None,
    )
    wait_for_evaluation(world, seen.rollout_id)
    assert seen.first_answer_s is not None
    assert seen.searches > 0
    assert seen.failed_searches == 0


def test_a_worker_of_another_release_stops_with_a_message_and_loses_nothing(world, workers):
    """The schema moves on in the middle of a rollout, as by a newer release's `db upgrade`."""
    worker = workers()
    row = platform.start(world, batch_size=4)
    until(lambda: status(world, row.id)["committed"] > 0)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert worker.wait(timeout=60) == 0
    assert "install that release" in background.worker_log(world.settings).read_text()
    with world.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{HEAD}'")
    workers()
    until(lambda: status(world, row.id)["state"] == "finalizable")
    found = audit(world, row.id)
    assert (found.lost, found.duplicated, found.falsified) == (0, 0, 0)


def test_a_full_log_disk_does_not_stop_the_work(world):
    import subprocess

    row = platform.start(world)
    with open("/dev/full", "wb") as full:
        worker = subprocess.Popen(
            background.worker_command(None),
            cwd=world.settings.data_dir,
            env=background.worker_environment(world.settings),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
        )
    try:
        until(lambda: status(world, row.id)["state"] == "finalizable")
    finally:
        worker.terminate()
        worker.wait(timeout=60)


def test_a_worker_that_cannot_begin_says_why_in_one_line_and_with_its_own_exit_code(world):
    environment = background.worker_environment(world.settings) | {"HOTREFRESH_DEVICE": "cuda:99"}
    ended = subprocess.run(
        [sys.executable, "-m", "workers.main"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert "set HOTREFRESH_DEVICE" in json.loads(line)["message"]
