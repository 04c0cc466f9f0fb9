"""A planted secret is looked for in everything that a run prints, logs, stores or shows to other processes: nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import text

from orchestrator.bootstrap import open_context
from orchestrator.service import background
from orchestrator.settings import Settings, masked
from tests.engine import platform as small
from tests.faults import hostile
from tests.faults.crew import until
from tests.faults.volume import ROOT

CANARY = "c4nary-0f-a-s3cret"


@pytest.fixture
def planted(settings: Settings) -> Iterator[Settings]:
    """Settings whose database and broker really ask for the secret as their password."""
    login, host = "canary_login", settings.database_url.split("@", 1)[1]
    client = redis.Redis.from_url(settings.broker_url)
    with psycopg.connect(settings.database_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{CANARY}' IN ROLE hotrefresh_app")
        client.execute_command("ACL", "SETUSER", login, "on", f">{CANARY}", "~*", "&*", "+@all")
        yield settings.model_copy(
            update={
                "database_url": f"postgresql://{login}:{CANARY}@{host}",
                "broker_url": f"redis://{login}:{CANARY}@{settings.broker_url.split('@', 1)[1]}",
            }
        )
        client.execute_command("ACL", "DELUSER", login)
        owner.execute(f"DROP ROLE {login}")
    client.close()


def environment_of(settings: Settings) -> dict[str, str]:
    """What a command needs, with the secret also in a variable of its own."""
    return background.worker_environment(settings) | {
        "PYTHONPATH": str(ROOT), "SOME_API_TOKEN": CANARY, "HOTREFRESH_ACTOR": "canary-test", "NO_COLOR": "1",
    }  # fmt: skip


# Many commands in one process, because each would load its parts anew. What to run comes by stdin: arguments can be read.
DRIVER = """
import json, os, sys
from cli.main import main
for name, changes, arguments in json.load(sys.stdin):
    os.environ.update(changes)
    code = main(["--debug", *arguments])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(1, f"\\n=== {name} ended with {code}\\n".encode())
"""


def run(
    settings: Settings, folder: Path, commands: Sequence[tuple[str, dict[str, str], str]]
) -> dict[str, str]:
    """Commands by name, with changes of the environment: what each printed, tracebacks too, and at the end its exit code."""
    planned = [(name, changes, command.split()) for name, changes, command in commands]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(planned), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=folder, env=environment_of(settings), timeout=200, check=False,
    )  # fmt: skip
    said, rest = {}, done.stdout
    for name, _, _ in commands:
        said[name], _, rest = rest.partition(f"=== {name} ended with ")
        said[name] += rest[:1]
    return said


def command_lines() -> str:
    """The arguments of every process there is, as anybody on the machine may read them."""
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def test_a_planted_secret_is_found_nowhere(planted, settings, tmp_path):
    with open_context(planted) as context:
        small.embedded_gallery(context, tmp_path)
        worker = background.start_worker(context)
        try:
            row = small.start(context)
            until(lambda: state(settings, row.id) == "finalizable", "the rollout ends", 60)
            places = {
                "process arguments": command_lines(),
                "a traceback": repr(context) + repr(planted) + str(planted),
            }
        finally:
            worker.terminate()
            worker.wait()
        places["the worker's log"] = background.worker_log(planted).read_text()
    sound = (
        "config show --resolved",
        "rollout status pics -o json",
        "ledger audit -o json",
        "gallery show nope",
    )
    said = run(
        planted, tmp_path, [(command, {}, command) for command in sound] + wrong_settings(planted, tmp_path)
    )
    assert [name for name in said if said[name][-1:] not in tuple("01238")] == []
    assert [name for name in said if name not in sound and said[name][-1] == "0"] == []
    assert "databse_url" in said["a misspelt setting"]
    places |= said
    places |= {f"table {name}": content for name, content in tables(settings).items()}
    places |= {str(path): text_of(path) for path in planted.data_dir.rglob("*") if path.is_file()}
    assert "rollout.planned" in places["ledger audit -o json"]
    assert "***" in places["config show --resolved"]
    found = [place for place, content in places.items() if CANARY in content]
    hostile.record("planted secret", injected=len(places), crashes=0, stored=len(found))
    assert found == []
    assert len(places) > 40


def wrong_settings(planted: Settings, folder: Path) -> list[tuple[str, dict[str, str], str]]:
    """Servers that are away or refuse, URLs that are wrong: each must fail, and none may name the password."""
    assert planted.database_url is not None
    database, broker = "HOTREFRESH_DATABASE_URL", "HOTREFRESH_BROKER_URL"
    good = {database: planted.database_url, broker: str(planted.broker_url)}
    (folder / "wrong.toml").write_text(f'databse_url = "postgresql://me:{CANARY}@h/x"\n')
    changes = {
        "no broker": {broker: f"redis://:{CANARY}@127.0.0.1:9/0"},
        "a refused broker login": {broker: good[broker].replace("canary_login", "nobody")},
        "no database": {database: f"postgresql://me:{CANARY}@127.0.0.1:9/x"},
        "a refused login": {database: good[database].replace("canary_login", "nobody")},
        "another database": {database: f"mysql://me:{CANARY}@127.0.0.1/x"},
        "no port": {database: f"postgresql://me:{CANARY}@127.0.0.1:port/x"},
        "a password behind a question mark": {
            database: f"postgresql://127.0.0.1:9/x?user=me&password={CANARY}"
        },
        "an @ in the password": {database: f"postgresql://me:x@{CANARY}@127.0.0.1:9/x"},
        "a misspelt setting": {"HOTREFRESH_CONFIG": str(folder / "wrong.toml")},
    }
    return [
        (name, good | change, "doctor" if broker in change else "gallery list")
        for name, change in changes.items()
    ]


def tables(settings: Settings) -> dict[str, str]:
    """Every table of the ledger as text."""
    from orchestrator.ledger.database import open_engine

    engine = open_engine(settings.database_url, pooled=False)
    with engine.connect() as connection:
        names = (
            connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'hotrefresh'"))
            .scalars()
            .all()
        )
        found = {
            name: json.dumps([str(row) for row in connection.execute(text(f"SELECT * FROM hotrefresh.{name}"))]) for name in names
        }  # fmt: skip
    engine.dispose()
    return found


def text_of(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def state(settings: Settings, rollout_id: int) -> str:
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute(
            "SELECT state FROM hotrefresh.rollout WHERE id = %s", (rollout_id,)
        ).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("postgresql://me:se@cret@host/x", "postgresql://me:***@host/x"),
        (
            "postgresql://host/x?user=me&password=secret&sslmode=require",
            "postgresql://host/x?user=me&password=***&sslmode=require",
        ),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://me:secret@host/x?sslpassword=secret", "postgresql://me:***@host/x?sslpassword=***"),
        ("'redis://me:secret@host/0'", "'redis://me:***@host/0'"),
        (None, None),
    ],
)
def test_passwords_are_masked_wherever_a_url_keeps_them(url, shown):
    assert masked(url) == shown
