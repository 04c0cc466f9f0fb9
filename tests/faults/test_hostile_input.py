"""Thousands of hostile pictures, vectors, names and messages: nothing crashes, nothing of them is stored, work goes on."""

from __future__ import annotations

import contextlib
import csv
import os
import pickle  # noqa: TID251 — to see that nobody loads one
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from sqlalchemy import text

from models.datasets import content_digest, is_plain_text, list_items, read_item
from models.errors import HotrefreshError, ItemError, UsageError
from orchestrator.broker import broker_queue
from orchestrator.context import Context
from orchestrator.ledger.rows import Claim
from orchestrator.service import background, embed, galleries, search
from orchestrator.service.names import find_gallery, find_model, find_query_set, find_rollout
from orchestrator.store.row_format import RowFormat
from tests.engine import platform as small
from tests.faults import hostile, ledger
from tests.faults.crew import until
from tests.faults.volume import ROOT, SEED, scaled
from workers.pipeline import Pipeline, Work

COUNT = scaled(2000, least=100)
DIM = 32

QUEUE = broker_queue("gpu")


@pytest.fixture(autouse=True)
def _say_the_seed() -> None:
    print(f"seed {SEED}, {COUNT} of each kind; repeat with HOTREFRESH_FAULT_SEED={SEED}")


def rows(context: Context, statement: str) -> list[tuple]:
    with context.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


# -- pictures ----------------------------------------------------------------------------------------------------------


def read_all(folder: Path) -> dict[str, str]:
    """What came of every file of a folder in a process of its own: name → outcome."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.hostile_reader", str(folder)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    outcomes = dict(line.split(" ", 1) for line in lines if " " in line)
    if lines[-1:] != ["finished."]:
        outcomes[lines[-1].split(" ")[0] if lines else "start"] = (
            f"CRASH:{done.returncode}: {done.stderr[-300:]}"
        )
    return outcomes


def test_no_picture_crashes_the_reader_and_none_that_is_no_picture_is_read(tmp_path):
    folder, secret = tmp_path / "pictures", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("hunter2")
    refused = set()
    for name, content, must in hostile.pictures(SEED, COUNT):
        (folder / name).write_bytes(content)
        if must:
            refused.add(name)
    before = {entry.name for entry in folder.iterdir()}
    hostile.strange_files(folder, secret)
    strange = {entry.name for entry in folder.iterdir()} - before
    outcomes = read_all(folder)
    crashed = {name: what for name, what in outcomes.items() if what.startswith(("CRASH", "endless"))}
    read = [name for name in refused | strange if outcomes[name] in ("picture", "strange")]
    read += [name for name, what in outcomes.items() if what == "strange"]
    hostile.record(
        "pictures", injected=len(outcomes), crashes=len(crashed), stored=len(read), seed=SEED, **Counter(outcomes.values())
    )  # fmt: skip
    assert len(outcomes) == COUNT + len(strange)
    assert (crashed, read) == ({}, [])
    assert Counter(outcomes.values())["picture"] < COUNT / 2  # most of them are really bad


def test_the_reader_of_hostile_pictures_notices_a_crash_and_a_sound_picture(tmp_path):
    """Faults that are planted are seen: a sound picture is told from a bad one, and a death is put down to its file."""
    (tmp_path / "a.png").write_bytes(hostile.encoded("RGB", "PNG", np.random.default_rng(0)))
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert read_all(tmp_path) == {"a.png": "picture", "b.png": "unsupported"}
    wide = hostile.png(12_000, 5_000, b"") + bytes(10)
    (tmp_path / "c.png").write_bytes(wide)
    assert read_all(tmp_path)["c.png"] == "corrupt"  # 60 megapixels are allowed, these are not there


def test_a_folder_of_pipes_devices_and_circles_becomes_a_gallery_without_waiting(context, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret").write_text("hunter2")
    hostile.strange_files(folder, tmp_path / "secret")
    (folder / "good.png").write_bytes(hostile.encoded("L", "PNG", np.random.default_rng(0)))
    galleries.create_gallery(context, "odd", str(folder))
    small.register_network(context, tmp_path, "old", seed=0)
    row = embed.embed_gallery(context, "odd", "old")
    with contextlib.suppress(HotrefreshError):
        small.work(context, row.id)
    stored = rows(context, "SELECT item FROM reporting.embedding_versions WHERE model IS NOT NULL")
    assert stored == [("good.png",)]
    assert not any("hunter2" in str(row) for row in rows(context, "SELECT message FROM quarantine"))


# -- vectors -----------------------------------------------------------------------------------------------------------


def judge(answer: object, n: int) -> tuple[np.ndarray, Work]:
    """What the writer of the pipeline would store of an encoder's answer."""
    claim = Claim(**dict.fromkeys(Claim.__dataclass_fields__, 1) | {"n": n})
    work = Work(claim, np.arange(n), [], list(range(n)), {}, 0.0, encoded=answer)  # type: ignore[arg-type]
    stand_in = SimpleNamespace(
        encoder=SimpleNamespace(dim=DIM, manifest=SimpleNamespace(name="x")),
        extents=SimpleNamespace(format=RowFormat(DIM)),
    )
    return Pipeline.vectors_of(stand_in, work), work  # type: ignore[arg-type]


def test_no_bad_vector_passes_the_checks_before_the_store(context, tmp_path):
    crashes: list[str] = []
    stored = injected = 0
    bad = list(hostile.bad_rows(SEED, COUNT // 2, DIM))
    good = np.full(DIM, 1 / np.sqrt(DIM), np.float32)
    for first in range(0, len(bad), 50):
        some = bad[first : first + 50]
        with np.errstate(all="ignore"):
            vectors, work = judge(np.stack([good, *some]), len(some) + 1)
        injected += len(some)
        stored += int(np.count_nonzero(np.abs(vectors[1:]).max(axis=1)))
        stored += sum(place not in work.holes for place in range(1, len(some) + 1))
        np.testing.assert_array_equal(vectors[0], good)
        assert 0 not in work.holes
    for answer in hostile.bad_answers(SEED, COUNT // 4, 8, DIM):
        injected += 1
        try:
            judge(answer, 8)
            stored += 1
        except HotrefreshError:
            pass
        except Exception as error:  # noqa: BLE001 — that is what is looked for
            crashes.append(repr(error))
    more, kept = import_bad_vectors(context, tmp_path, bad[: COUNT - injected])
    hostile.record("vectors", injected=injected + more, crashes=len(crashes), stored=stored + kept, seed=SEED)
    assert injected + more == COUNT
    assert (crashes, stored, kept) == ([], 0, 0)


def import_bad_vectors(context: Context, tmp_path: Path, bad: list[np.ndarray]) -> tuple[int, int]:
    """Import each bad vector in a set of its own; returns how many, and how many left anything behind."""
    galleries.create_gallery(context, "pics", str(small.draw_pictures(tmp_path / "pictures", per_class=1)))
    small.register_network(context, tmp_path, "old", seed=0, dim=DIM)
    whole = np.full((small.CLASSES, DIM), 1 / np.sqrt(DIM), np.float32)
    for number, row in enumerate(bad):
        tried = whole.copy()
        tried[number % len(tried)] = row
        with pytest.raises(UsageError, match="L2-normalised"):
            embed.import_embeddings(context, "pics", "old", tried)
    kept = len(rows(context, "SELECT id FROM rollout")) + len(
        list(context.settings.data_dir.rglob("vectors*"))
    )
    assert embed.import_embeddings(context, "pics", "old", whole).state == "finalized"
    return len(bad), kept


# -- names and paths -----------------------------------------------------------------------------------------------------


def test_no_name_or_path_crashes_anything_or_gets_into_the_ledger(context, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.png").write_bytes(hostile.encoded("L", "PNG", np.random.default_rng(0)))
    galleries.create_gallery(context, "pics", str(small.draw_pictures(tmp_path / "pictures", per_class=1)))
    before = rows(context, "SELECT name FROM gallery")
    crashes: list[str] = []
    names = list(hostile.names(SEED, COUNT))
    for number, name in enumerate(names):
        for tried in surfaces(context, name, number):
            try:
                tried()
            except HotrefreshError as error:
                if len(str(error)) > 8000:
                    crashes.append(f"{name[:80]!r}: {len(str(error))} characters, {str(error)[:60]}")
            except Exception as error:  # noqa: BLE001 — that is what is looked for
                crashes.append(f"{name[:80]!r}: {error!r:.300}")
    made = [name for (name,) in rows(context, "SELECT name FROM gallery") if (name,) not in before]
    harmful = [name for name in made if not galleries.is_name(name)]
    harmful += manifests(context, tmp_path / "inside", names)
    hostile.record(
        "paths and names", injected=len(names), crashes=len(crashes), stored=len(harmful), seed=SEED
    )
    assert (crashes[:5], harmful) == ([], [])
    assert rows(context, "SELECT count(*) FROM audit WHERE target LIKE '%DROP%'") == [(0,)]


def surfaces(context: Context, name: str, number: int) -> list[Callable[[], object]]:
    """Where a name or a path goes in: all that need no database, and one of those that do."""

    def found(look: Callable[..., object], *arguments: object) -> Callable[[], object]:
        def run() -> object:
            with context.engine.connect() as connection:
                return look(connection, *arguments)

        return run

    def a_query_set() -> object:
        with context.engine.connect() as connection:
            return find_query_set(connection, find_gallery(connection, "pics"), name)

    always = [
        lambda: list_items(name) if not os.path.isdir(name) else None,
        lambda: list_items(f"{name}.csv"),
        lambda: list_items(f"glyphs:{name}"),
        lambda: read_item(name),
        lambda: read_item(f"file:{name}"),
        lambda: read_item(f"verse:web/{name}"),
        lambda: read_item(f"glyph:{name}/U+{name}"),
        lambda: content_digest(f"file:/{name}"),
        lambda: content_digest(f"text:{name}"),
    ]
    in_turn = [
        lambda: galleries.create_gallery(context, name, "pictures"),
        lambda: galleries.create_gallery(context, "x", name) if not os.path.isdir(name) else None,
        lambda: galleries.import_query_set(context, "pics", name, "pictures"),
        lambda: search.search(context, "pics", search.Query(key=name), 5),
        lambda: search.search(context, name, search.Query(key="a"), 5),
        lambda: search.search(context, "pics", search.Query(image=Path(name)), 5),
        found(find_gallery, name),
        found(find_model, name),
        found(find_rollout, name),
        a_query_set,
    ]
    return [*always, in_turn[number % len(in_turn)]]


def manifests(context: Context, folder: Path, names: list[str]) -> list[str]:
    """Names as keys, paths and labels of manifests. Returns what of them got into the ledger and should not have."""
    written = [name for name in names if not any("\ud800" <= c <= "\udfff" for c in name)]
    for column, build in {
        "path": lambda number, name: (f"k{number}", name, ""),
        "key": lambda number, name: (name, "../outside.png" if number % 2 else "good.png", ""),
        "label": lambda number, name: (f"k{number}", "good.png", name),
    }.items():
        (folder / "good.png").write_bytes(hostile.encoded("L", "PNG", np.random.default_rng(1)))
        with (folder / f"{column}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(("key", "path", "label"))
            csv.writer(file).writerows(build(number, name) for number, name in enumerate(written))
            csv.writer(file).writerow(("sound", "good.png", "sound"))
        galleries.create_gallery(context, f"from-{column}", str(folder / f"{column}.csv"))
    stored = rows(context, "SELECT key, uri, coalesce(label, '') FROM item WHERE key <> 'sound'")
    kept = rows(context, "SELECT key, uri, reason FROM rejected")
    assert len(kept) > len(written)
    harmful = [repr(row)[:200] for row in stored + kept if not all(is_plain_text(part) for part in row)]
    for _, uri, _ in stored:
        if str(folder) not in uri and "class-" not in uri:
            with contextlib.suppress(
                ItemError
            ):  # an absolute path may be written, but what is no picture is not read
                read_item(uri)
                harmful.append(uri)
    return harmful


# -- messages ----------------------------------------------------------------------------------------------------------


class Bait:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_message_ends_a_worker_or_changes_the_ledger_and_it_works_afterwards(context, tmp_path):
    galleries.create_gallery(context, "pics", str(small.draw_pictures(tmp_path / "pictures", per_class=1)))
    small.register_network(context, tmp_path, "old", seed=0)
    before = ledger_state(context)
    worker = background.start_worker(context)
    crashes = injected = 0
    try:
        with contextlib.closing(redis.Redis.from_url(context.broker.url)) as client:
            for raw in hostile.messages(SEED, COUNT, pickle.dumps(Bait(tmp_path / "bait"))):
                client.lpush(QUEUE, raw)
                injected += 1
                if injected % 100 == 0:
                    until(partial(read_or_dead, client, worker), "the queue is empty", 60)
                if worker.poll() is not None:
                    crashes += 1
                    print(f"message {injected} ended the worker: {raw[:300]!r}")
                    worker = background.start_worker(context)
            until(partial(read_or_dead, client, worker), "the queue is empty", 60)
        stored = int((tmp_path / "bait").exists()) + (ledger_state(context) != before)
        hostile.record("messages", injected=injected, crashes=crashes, stored=stored, seed=SEED)
        assert (crashes, stored) == (0, 0)
        row = embed.embed_gallery(context, "pics", "old")
        until(lambda: ledger.state(context, row.id) == "finalized", "the same worker does real work", 60)
        assert worker.poll() is None
    finally:
        worker.kill()
        worker.wait()


def read_or_dead(client: redis.Redis, worker: subprocess.Popen[bytes]) -> bool:
    """Whether the worker has taken everything out of the list, or has ended."""
    return worker.poll() is not None or not client.llen(QUEUE)


def ledger_state(context: Context) -> list[tuple]:
    """What no message may change."""
    return rows(
        context,
        "SELECT (SELECT count(*) FROM rollout), (SELECT count(*) FROM audit), (SELECT count(*) FROM gallery), "
        "(SELECT count(*) FROM batch), (SELECT count(*) FROM model)",
    )


def test_the_bait_would_be_noticed(tmp_path):
    """A pickle that is loaded leaves its trace: what the message test looks for can happen."""
    pickle.loads(pickle.dumps(Bait(tmp_path / "bait")))
    assert (tmp_path / "bait").is_dir()


def test_a_folder_whose_name_is_no_utf8_becomes_a_gallery(context, tmp_path):
    folder = os.fsencode(tmp_path) + b"/pictures-\xff\x1b"
    os.mkdir(folder)
    with open(folder + b"/good.png", "wb") as file:
        file.write(hostile.encoded("L", "PNG", np.random.default_rng(0)))
    assert galleries.create_gallery(context, "odd", os.fsdecode(folder)).taken == 1
    ((source,),) = rows(context, "SELECT source FROM gallery")
    assert source.endswith("pictures-\\udcff\\x1b")
