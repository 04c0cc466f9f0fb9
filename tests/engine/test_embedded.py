"""Embedded servers: they start by themselves, survive what is killed, and leave nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from orchestrator.embedded import (
    ENDPOINTS,
    KEEPER_LOCK,
    PREVIOUS,
    account,
    keeper_lives,
    ports,
    postgres,
    use_embedded,
    valkey,
)
from orchestrator.errors import UnreachableError

USE = """
import sys
from pathlib import Path
from orchestrator.embedded import use_embedded
with use_embedded(Path(sys.argv[1])) as servers:
    print(servers.database_url, servers.broker_url, flush=True)
    sys.stdin.read()
"""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch):
    monkeypatch.setenv("HOTREFRESH_EMBEDDED_LINGER_S", "0.2")


@pytest.fixture
def data(tmp_path):
    """A new data folder; its servers are gone when the test is over, and so is the folder."""
    yield tmp_path / "data"
    nothing_runs_in(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def house(shared_house):
    """A data folder that earlier tests have used, ill-treated and left; so each test is also one of the next start."""
    yield shared_house
    nothing_runs_in(shared_house)


def until(condition, timeout_s=30.0, look_every_s=0.02):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(look_every_s)


def processes_of(folder: Path) -> list[str]:
    """What runs on a folder: our two keeper processes, the servers, and PostgreSQL's children by where they are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            line = process.cmdline()
            if any(str(folder) in part for part in line) or process.cwd().startswith(str(folder)):
                found.append(f"{process.pid} {line}")
    return found


def nothing_runs_in(folder: Path) -> None:
    until(lambda: processes_of(folder) == [], look_every_s=0.1)


def keeper_of(folder: Path) -> psutil.Process:
    return psutil.Process(json.loads((folder / "embedded" / ENDPOINTS).read_text())["pid"])


def server_of(folder: Path, program: str) -> psutil.Process:
    return next(child for child in keeper_of(folder).children() if Path(child.cmdline()[0]).name == program)


def kill(process: psutil.Process) -> None:
    process.kill()
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def count(url: str) -> int:
    """Add a row, and say how many there are."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS seen (n serial)")
        connection.execute("INSERT INTO seen DEFAULT VALUES")
        row = connection.execute("SELECT count(*) FROM seen").fetchone()
        assert row is not None
        return row[0]


def set_and_get(url: str, value: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.set("key", value)
        return client.get("key")


def works(servers) -> bool:
    try:
        return count(servers.database_url) > 0 and set_and_get(servers.broker_url, "a") == "a"
    except (psycopg.OperationalError, redis.ConnectionError):
        return False


def user(data: Path, **options) -> subprocess.Popen[str]:
    """A process that uses the servers until its input ends."""
    command = [sys.executable, "-c", USE, str(data)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


# Starting and stopping


def test_both_servers_answer_keep_their_data_and_stop_when_nobody_is_left(house):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
        assert set_and_get(servers.broker_url, "kept") == "kept"
    nothing_runs_in(house)
    assert not (house / "embedded" / ENDPOINTS).exists()
    with use_embedded(house) as servers:
        assert count(servers.database_url) == before + 1
        assert redis.Redis.from_url(servers.broker_url).get("key") == b"kept"


def test_no_file_with_a_password_can_be_read_by_others(house):
    with use_embedded(house) as servers:
        secrets = [
            servers.database_url.split(":")[2].split("@")[0],
            servers.broker_url.split(":")[2].split("@")[0],
        ]
        holders = [
            path
            for path in (house / "embedded").rglob("*")
            if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
        ]
        assert {path.name for path in holders} >= {
            ENDPOINTS,
            "valkey.conf",
            "postgres.password",
            "valkey.password",
        }
        assert [path for path in holders if path.stat().st_mode & 0o077] == []


def test_nobody_gets_in_without_the_password(house):
    with use_embedded(house) as servers:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(servers.database_url, password="wrong")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(servers.broker_url.replace("redis://:", "redis://:wrong")).ping()


def test_a_second_user_gets_the_same_servers_and_they_outlive_the_first(house):
    first = use_embedded(house)
    with use_embedded(house) as second:
        assert (second.database_url, second.broker_url) == (first.database_url, first.broker_url)
        first.close()
        first.close()
        time.sleep(0.6)  # longer than the keeper waits before it leaves
        assert works(second)


def test_sixteen_processes_at_once_get_the_same_working_servers(data):
    users = [user(data) for _ in range(16)]
    lines = {process.stdout.readline().split()[0] for process in users}
    assert len(lines) == 1
    assert count(lines.pop()) == 1
    for process in users:
        process.communicate()
    assert [process.returncode for process in users] == [0] * 16


def test_whoever_comes_while_the_keeper_leaves_gets_working_servers(house, monkeypatch):
    monkeypatch.setenv("HOTREFRESH_EMBEDDED_LINGER_S", "0")
    for pause_s in (0.0, 0.1, 0.15, 0.2, 0.25):
        with use_embedded(house) as servers:
            assert works(servers)
        time.sleep(pause_s)


# Killing


def test_a_user_killed_with_sigkill_does_not_keep_the_servers_up(house):
    process = user(house)
    process.stdout.readline()
    process.kill()
    process.communicate()
    nothing_runs_in(house)


def test_ctrl_c_for_one_command_leaves_the_servers_to_the_others(house):
    with use_embedded(house) as servers:
        command = user(house, start_new_session=True, stderr=subprocess.DEVNULL)
        command.stdout.readline()
        os.killpg(command.pid, signal.SIGINT)
        command.communicate()
        assert command.returncode == -signal.SIGINT
        assert works(servers)


def test_servers_whose_keeper_is_killed_come_back_at_the_same_addresses_for_those_who_use_them(house):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
        kill(keeper_of(house))
        until(lambda: works(servers))
        assert count(servers.database_url) > before


def test_a_keeper_killed_together_with_its_parent_blocks_nobody_and_its_addresses_come_back(house):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
        keeper = keeper_of(house)
        kill(keeper.parent())
        kill(keeper)
        with use_embedded(house) as again:  # at once: the old PostgreSQL may still be stopping
            assert (again.database_url, again.broker_url) == (servers.database_url, servers.broker_url)
            assert count(servers.database_url) == before + 1


def test_a_keeper_asked_to_stop_stops_its_servers_cleanly(house):
    with use_embedded(house):
        keeper_of(house).terminate()
        nothing_runs_in(house)
        assert not (house / "embedded" / "postgres" / "postmaster.pid").exists()


@pytest.mark.parametrize("program", ["postgres", "valkey-server"])
def test_a_server_killed_with_sigkill_is_started_again_at_the_same_address(house, program):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
        set_and_get(servers.broker_url, "kept")
        kill(server_of(house, program))
        until(lambda: redis_value(servers.broker_url) == "kept")
        until(lambda: works(servers))
        assert count(servers.database_url) > before


def redis_value(url: str) -> str | None:
    with (
        contextlib.suppress(redis.ConnectionError),
        redis.Redis.from_url(url, decode_responses=True) as client,
    ):
        return client.get("key")
    return None


# What an earlier run may have left


def test_pid_and_endpoint_files_of_a_dead_run_block_nobody(house):
    with use_embedded(house):
        pass
    nothing_runs_in(house)
    folder = house / "embedded"
    (folder / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n/nowhere\n0\n"
    )  # a pid that is ours by now
    stale = {
        "database_url": "postgresql://nobody@127.0.0.1:9/x",
        "broker_url": "redis://127.0.0.1:9/0",
        "pid": 1,
    }
    (folder / ENDPOINTS).write_text(json.dumps(stale))
    with use_embedded(house) as servers:
        assert works(servers)


def test_addresses_that_somebody_has_taken_meanwhile_are_given_up(house):
    with use_embedded(house):
        pass
    nothing_runs_in(house)
    with socket.socket() as other:
        taken = ports.choose(None)
        other.bind(("127.0.0.1", taken))
        other.listen()
        stale = {
            "database_url": f"postgresql://x@127.0.0.1:{taken}/x",
            "broker_url": f"redis://127.0.0.1:{taken}/0",
        }
        (house / "embedded" / PREVIOUS).write_text(json.dumps(stale))
        with use_embedded(house) as servers:
            assert works(servers)
    (house / "embedded" / PREVIOUS).unlink()


@pytest.mark.parametrize("make", [postgres.Postgres, valkey.Valkey])
def test_a_port_taken_between_probing_and_listening_is_replaced(house, make, monkeypatch):
    folder = house / "embedded"
    programs = [postgres.programs(folder / "postgres") / "postgres", valkey.program()]
    server = make(folder, account.choose_account(folder, programs))
    with socket.socket() as other:
        taken = ports.choose(None)
        other.bind(("127.0.0.1", taken))
        other.listen()
        with monkeypatch.context() as patch:
            patch.setattr(ports, "choose", lambda *_, **__: taken)
            server.begin()
        server.wait_ready()
        assert server.port != taken
        server.end()


def test_a_first_start_killed_half_way_is_begun_again(data):
    command = user(data)
    until(lambda: (data / "embedded" / "postgres.new" / "base").exists())  # initdb is at work
    for process in [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # initdb runs one short program after the other
            process.kill()
    command.communicate()
    nothing_runs_in(data)
    assert not (data / "embedded" / "postgres").exists()
    with use_embedded(data) as servers:
        assert works(servers)
    assert not (data / "embedded" / "postgres.new").exists()


def test_a_lost_password_is_replaced_without_losing_the_ledger(house):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
    nothing_runs_in(house)
    (house / "embedded" / "postgres.password").unlink()
    with use_embedded(house) as servers:
        assert count(servers.database_url) == before + 1


def test_a_broker_file_that_cannot_be_read_is_set_aside(house):
    with use_embedded(house) as servers:
        set_and_get(servers.broker_url, "a")
    nothing_runs_in(house)
    broken = next((house / "embedded" / "valkey" / "appendonlydir").glob("*.incr.aof"))
    broken.write_bytes(b"this was no append-only file" + broken.read_bytes())
    with use_embedded(house) as servers:
        assert works(servers)
    assert (house / "embedded" / "valkey" / "appendonlydir.unreadable").is_dir()


def test_a_data_folder_may_be_moved_and_servers_whose_folder_is_deleted_go(house, tmp_path):
    with use_embedded(house) as servers:
        before = count(servers.database_url)
    nothing_runs_in(house)
    shutil.copytree(house, tmp_path / "moved")
    with use_embedded(tmp_path / "moved") as servers:
        assert count(servers.database_url) == before + 1
        shutil.rmtree(tmp_path / "moved")
    nothing_runs_in(tmp_path)


# Root


@root_only
def test_a_data_folder_below_one_closed_to_others_works_and_the_closed_one_stays_closed(house):
    house.chmod(0o700)
    with use_embedded(house) as servers:
        assert works(servers)
        keeper, server = keeper_of(house), server_of(house, "postgres")
        assert server.uids().real != 0
        kill(keeper.parent())
        kill(keeper)
        nothing_runs_in(house)  # the parent-death signal has survived the change of user
    assert house.stat().st_mode & 0o777 == 0o700


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@root_only
def test_programs_below_a_folder_closed_to_others_make_a_cluster_and_run_it(data, monkeypatch):
    closed = data / "closed"
    closed.mkdir(parents=True, mode=0o700)
    wheel = postgres.programs(data).parents[1]  # its libraries lie beside it
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True, copy_function=link_or_copy)
    programs = closed / postgres.programs(data).relative_to(wheel.parent)
    monkeypatch.setattr(postgres, "programs", lambda _: programs)
    server = postgres.Postgres(data, account.choose_account(data, [programs / "postgres"]))
    server.begin()
    server.wait_ready()
    assert count(server.url) == 1
    server.end()
    assert server.account.uid != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@root_only
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="capabilities and user namespaces are Linux's"
)
def test_root_without_the_right_to_pass_file_permissions_uses_a_user_namespace(house):
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("this system has no user namespaces")
    house.chmod(0o700)
    with use_embedded(house) as servers:
        before = count(servers.database_url)
    nothing_runs_in(house)
    drop_capability = ctypes.CDLL(None).prctl
    process = user(
        house, preexec_fn=lambda: drop_capability(24, 1, 0, 0, 0)
    )  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
    assert count(process.stdout.readline().split()[0]) == before + 1
    assert server_of(house, "postgres").uids().real == 0
    process.communicate()
    nothing_runs_in(house)
    with use_embedded(house) as servers:  # and back: the files change hands
        assert count(servers.database_url) == before + 2


def test_no_way_to_run_postgresql_names_the_closed_folder_and_the_ways_out(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "data").mkdir()
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            closed = parent  # the outermost is named; pytest's own folders are closed, too
    monkeypatch.setattr(account, "_works", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UnreachableError, match="HOTREFRESH_DATA_DIR") as caught:
        account.choose_account(tmp_path / "closed" / "data", [])
    assert f"{closed} is closed" in str(caught.value)


# Clear errors


def test_a_data_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="HOTREFRESH_DATA_DIR"):
        use_embedded(tmp_path / "file" / "data")


def test_a_start_that_cannot_succeed_says_why_and_what_else_there_is(data):
    (data / "embedded").mkdir(parents=True)
    (data / "embedded" / "valkey").write_text("a file where a folder should be")
    with pytest.raises(UnreachableError, match=r"valkey.*HOTREFRESH_BROKER_URL"):
        use_embedded(data)
    assert not keeper_lives(data / "embedded")


def test_a_server_that_does_not_start_shows_its_last_messages(house):
    with use_embedded(house):
        pass
    nothing_runs_in(house)
    control = house / "embedded" / "postgres" / "global" / "pg_control"
    control.rename(control.with_suffix(".away"))
    with pytest.raises(UnreachableError, match=r"could not find the database system.* full logs: "):
        use_embedded(house)
    control.with_suffix(".away").rename(control)


@pytest.mark.parametrize("module", [postgres, valkey])
def test_a_missing_wheel_says_how_to_install_it_and_what_else_there_is(module, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(UnreachableError, match=r"hotrefresh\[embedded\].*HOTREFRESH_DATABASE_URL"):
        postgres.programs(tmp_path) if module is postgres else valkey.program()


def test_a_cluster_of_a_version_that_the_wheel_lacks_says_which_is_needed(tmp_path):
    (tmp_path / "PG_VERSION").write_text("11\n")
    with pytest.raises(UnreachableError, match="made by PostgreSQL 11"):
        postgres.programs(tmp_path)


def test_no_free_port_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda _: False)
    with pytest.raises(UnreachableError, match="no free port"):
        ports.choose(None)


def test_a_lock_that_a_stuck_process_holds_is_a_clear_error(tmp_path, monkeypatch):
    from orchestrator import embedded
    from orchestrator.embedded import files

    (tmp_path / "embedded").mkdir()
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.05)
    with files.take(tmp_path / "embedded" / "users.lock"), pytest.raises(UnreachableError, match="fuser"):
        use_embedded(tmp_path)
    with (
        files.take(tmp_path / "embedded" / KEEPER_LOCK),
        pytest.raises(UnreachableError, match="did not start"),
    ):
        use_embedded(tmp_path)


def test_importing_the_package_is_light():
    code = """
import sys, orchestrator.embedded.keeper
sys.exit(len({"sqlalchemy", "torch", "psycopg", "redis", "psutil", "numpy"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
