"""The command on real servers: what an operator types, what a program reads, what each mistake answers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pyarrow import parquet

from orchestrator.errors import ExitCode
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.service import advance, embed, galleries, models, rollouts
from orchestrator.service.listings import model
from orchestrator.store import ROWS, read_array
from tests.engine import platform

MISTAKES = [
    (["gallery", "show", "nope"], ExitCode.NOT_FOUND, "there are: pics"),
    (["gallery", "search", "pics", "--key", "nope"], ExitCode.NOT_FOUND, "no item 'nope'"),
    (["gallery", "search", "pics", "--text", "cat"], ExitCode.CONFLICT, "has no tower for texts"),
    (["gallery", "search", "pics", "--image", "nope.png"], ExitCode.USAGE, "nope.png"),
    (["gallery", "create", "pics", "pictures"], ExitCode.CONFLICT, "there is a gallery 'pics' already"),
    (["gallery", "create", "more", "nowhere"], ExitCode.USAGE, "'nowhere'"),
    (["gallery", "embed", "pics", "--model", "kin"], ExitCode.CONFLICT, "rollout start pics --to kin"),
    (["model", "show", "nope"], ExitCode.NOT_FOUND, "there are: kin, old"),
    (["model", "import", "x"], ExitCode.USAGE, "--wordllama"),
    (["model", "import", "x", "nowhere"], ExitCode.ERROR, "nowhere"),
    (["model", "train", "x", "--data", "pictures", "--method", "ract"], ExitCode.USAGE, "--old"),
    (["model", "train", "old", "--data", "pictures"], ExitCode.CONFLICT, "already"),
    (["model", "train", "x", "--data", "pictures", "--method", "magic"], ExitCode.USAGE, "magic"),
    (["rollout", "start", "pics", "--to", "old"], ExitCode.CONFLICT, "already serves"),
    (["rollout", "start", "pics", "--to", "kin", "--order", "best"], ExitCode.USAGE, "entropy"),
    (["rollout", "start", "pics", "--to", "kin", "--prototypes", "best"], ExitCode.USAGE, "clusters"),
    (["rollout", "status", "99"], ExitCode.NOT_FOUND, "rollout list"),
    (["rollout", "get", "pics", "nope"], ExitCode.NOT_FOUND, "lease_s"),
    (["rollout", "rollback", "pics", "--yes"], ExitCode.CONFLICT, "nothing to go back to"),
    (["queryset", "show", "pics", "nope"], ExitCode.NOT_FOUND, "there are: asked"),
    (["queryset", "import", "pics", "asked", "queries"], ExitCode.CONFLICT, "already"),
]  # fmt: skip


@pytest.fixture
def json_of(hotrefresh):
    """Runs a command with -o json; fails unless it ends with 0."""

    def run(*arguments):
        code, out, err = hotrefresh(*arguments, "-o", "json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def test_a_gallery_its_queries_and_a_model_come_in_by_command(hotrefresh, json_of, tmp_path):
    pictures, queries = (
        platform.draw_pictures(tmp_path / "p"),
        platform.draw_pictures(tmp_path / "q", 2, seed=7),
    )
    made = json_of("gallery", "create", "pics", pictures)
    assert (made["taken"], made["labelled"], made["schema_version"]) == (240, 240, 1)
    assert json_of("queryset", "import", "pics", "asked", queries)["taken"] == 80
    folder = platform.save_network(tmp_path, "old", seed=0)
    assert json_of("model", "import", "old", folder)["dim"] == 32
    assert json_of("model", "verify")["models"] == [{"name": "old", "ok": True, "problem": None}]
    code, out, err = hotrefresh("gallery", "list")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["pics", "image", "240"]
    assert err.endswith("next: hotrefresh gallery embed pics --model old\n")


def test_embeddings_come_from_a_file_and_are_searched(context, hotrefresh, json_of, tmp_path):
    galleries.create_gallery(context, "pics", str(platform.draw_pictures(tmp_path / "p", 1)))
    platform.register_network(context, tmp_path, "old", seed=0)
    vectors = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    np.save(tmp_path / "short.npy", vectors[:7])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "good.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    embed = ("gallery", "embed", "pics", "--model", "old", "--from-file")
    assert hotrefresh(*embed, "short.npy")[0] == ExitCode.USAGE
    assert hotrefresh(*embed, "objects.npy")[0] == ExitCode.USAGE
    assert hotrefresh(*embed, "nowhere.npy")[0] == ExitCode.USAGE
    assert json_of(*embed, "good.npy")["state"] == "finalized"
    assert hotrefresh(*embed, "good.npy")[0] == ExitCode.CONFLICT


def test_plan_changes_nothing_start_accepts_and_status_says_how_it_ends(world, hotrefresh, json_of):
    assert hotrefresh("gallery", "show", "pics")[2].endswith("next: hotrefresh rollout start pics --to kin\n")
    planned = json_of("rollout", "plan", "pics", "--to", "kin", "--order", "margin", "--first", "3")
    assert planned["items"] == 240
    assert planned["batches"] == 15
    assert planned["certificate"]["verdict"] == "certified"
    assert len(planned["first_items"]) == 3
    assert len(json_of("rollout", "list", "pics")["rollouts"]) == 1
    code, out, err = hotrefresh("rollout", "start", "pics", "--to", "kin", "--order", "margin", "-o", "json")
    assert code == 0
    started = json.loads(out)
    assert started["accepted"]
    assert started["state"] == "deployed"
    assert "warning: no worker is alive" in err
    assert err.endswith(f"rollout status -w {started['id']}\n")
    platform.work(world, started["id"])
    code, out, _ = hotrefresh("rollout", "status", "-w", "pics", "-o", "json")
    assert code == 0
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["finalizable"]
    assert json_of("rollout", "promote", "pics")["state"] == "finalized"
    assert json_of("gallery", "show", "pics")["model"] == "kin"
    assert [r["action"] for r in json_of("rollout", "history", "pics")["history"]][-1] == "rollout.finalized"
    code, _, err = hotrefresh("rollout", "undo", "pics", "--yes")
    assert code == 0
    assert "pics serves old with its old vectors again" in err
    assert json_of("gallery", "show", "pics")["model"] == "old"


def test_the_plan_s_first_items_are_those_that_start_re_embeds_first(world, json_of):
    planned = json_of("rollout", "plan", "pics", "--to", "kin", "--prototypes", "classes", "--first", "16")
    row = advance.advance(world, platform.start(world).id)
    first = np.asarray(read_array(row.extent_uri, ROWS, "<u4", row.n_items)[:16])
    with world.engine.connect() as connection:
        keys = {
            i.row: i.key for i in gallery_queries.items_of_rows(connection, row.gallery_id, first.tolist())
        }
    assert [item["key"] for item in planned["first_items"]] == [keys[int(r)] for r in first]


def test_each_hit_of_a_search_names_the_version_of_its_embedding(world, json_of, tmp_path):
    found = json_of("gallery", "search", "pics", "--key", "class-03/1.png", "-k", "2")
    assert found["hits"][0]["key"] == "class-03/1.png"
    assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-4)
    assert {hit["version"] for hit in found["hits"]} == {"old"}
    image = tmp_path / "pictures" / "class-05" / "2.png"
    assert json_of("gallery", "search", "pics", "--image", image)["hits"][0]["label"] == "class-05"


def test_pause_resume_and_cancel_say_where_they_led(world, hotrefresh, json_of):
    row = advance.advance(world, platform.start(world).id)
    assert json_of("rollout", "pause", "pics", "--reason", "night")["reason"] == "night"
    code, _, err = hotrefresh("rollout", "status", "-w", row.id)
    assert code == ExitCode.CONFLICT
    assert "is paused: night" in err
    assert json_of("rollout", "resume", row.id)["state"] == "backfilling"
    code, _, err = hotrefresh("rollout", "finalize", row.id)
    assert code == ExitCode.CONFLICT
    assert "240 of 240 items are not" in err
    assert hotrefresh("rollout", "cancel", row.id)[0] == ExitCode.USAGE  # nobody to ask, no --yes
    assert json_of("rollout", "cancel", row.id, "--yes")["state"] == "cancelled"
    assert hotrefresh("rollout", "status", "-w", row.id)[0] == ExitCode.CONFLICT


def test_the_ledger_s_views_are_shown_and_exported(world, hotrefresh, json_of, tmp_path):
    row = platform.start(world)
    platform.work(world, row.id)
    summary = json_of("ledger", "flips", "pics", "--summary")["flip_summary"]
    assert summary[-1]["coverage"] == 1.0
    assert [each["coverage"] for each in summary] == sorted(each["coverage"] for each in summary)
    assert len({each["coverage"] for each in summary}) == len(summary), (
        "each batch is counted at its own coverage"
    )
    with world.engine.begin() as connection:  # the two models are too near to flip anything by themselves
        connection.exec_driver_sql(
            "INSERT INTO flip (rollout_id, query_set_id, query_no, kind, reference, opened_seq, cause) "
            f"SELECT {row.id}, id, 0, 'negative', reference, 3, 'mixed_stage' "
            "FROM query_set, (VALUES ('old_system'), ('previous_stage')) AS each (reference)"
        )
    every = json_of("ledger", "flips", "pics")["flips"]
    assert len(every) == 2
    for word, reference in (("old", "old_system"), ("previous", "previous_stage")):
        found = json_of("ledger", "flips", "pics", "--reference", word)["flips"]
        assert found == [flip for flip in every if flip["reference"] == reference]
    assert (
        json_of("ledger", "flips", "pics", "--cause", "mixed_stage", "--kind", "negative")["flips"] == every
    )
    assert json_of("ledger", "flips", "pics", "--cause", "model")["flips"] == []
    assert hotrefresh("ledger", "flips", "pics", "--cause", "luck")[0] == ExitCode.USAGE
    assert len(json_of("ledger", "versions", "pics", "--items")["versions"]) == 240
    assert json_of("ledger", "versions", "pics")["coverage"][0]["model"] == "kin"
    assert json_of("ledger", "curve", "pics", "--metric", "recall_at_1")["curve"]
    for suffix in ("csv", "json", "jsonl"):
        assert json_of("ledger", "export", "flip_summary", f"out.{suffix}", "--rollout", "pics")[
            "rows"
        ] == len(summary)
    with (tmp_path / "out.csv").open() as file:
        assert [float(line["coverage"]) for line in csv.DictReader(file)] == [s["coverage"] for s in summary]
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == len(summary)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(summary)
    assert json_of("ledger", "export", "flip_summary", "typed", "--format", "parquet", "--rollout", "pics")[
        "rows"
    ]
    typed = parquet.read_table(tmp_path / "typed.parquet").to_pylist()
    assert [
        (r["coverage"], r["negative_flips"], r["at"].isoformat(timespec="milliseconds")) for r in typed
    ] == [(s["coverage"], s["negative_flips"], s["at"].replace("Z", "+00:00")) for s in summary]
    assert json_of("ledger", "export", "gate_decisions", "none.parquet", "--rollout", "pics")["rows"] == 0
    assert str(parquet.read_schema(tmp_path / "none.parquet").field("value").type) == "double"
    assert json_of("ledger", "export", "audit", "audit.parquet")["rows"] > 5
    assert json.loads(parquet.read_table(tmp_path / "audit.parquet").to_pylist()[-1]["after"])
    assert hotrefresh("ledger", "export", "audit", "out.csv", "--format", "parquet")[0] == ExitCode.USAGE
    assert not list(tmp_path.glob(".out*"))
    assert hotrefresh("ledger", "export", "nothing", "out.csv")[0] == ExitCode.USAGE
    assert hotrefresh("ledger", "export", "audit", "out.xls")[0] == ExitCode.USAGE


def test_each_mistake_has_one_clear_error_and_its_exit_code(world, hotrefresh):
    for arguments, code, says in MISTAKES:
        found, out, err = hotrefresh(*arguments)
        assert (found, out) == (code, ""), (arguments, err)
        assert says in err, arguments
        assert err.count("error: ") == 1, arguments


def test_a_pair_without_certificate_is_refused_and_one_that_fails_it_says_so(world, hotrefresh, tmp_path):
    platform.register_network(world, tmp_path, "stranger", seed=99)
    assert hotrefresh("rollout", "start", "pics", "--to", "stranger")[0] == ExitCode.NOT_CERTIFIED
    certify = ("model", "certify", "old", "stranger", "--gallery", "pics")
    code, out, _ = hotrefresh(*certify, "-o", "json")
    assert code == ExitCode.NOT_CERTIFIED
    assert json.loads(out)["verdict"] == "refused"
    assert hotrefresh(*certify, "--minimum-queries", 1000)[0] == ExitCode.INCONCLUSIVE
    assert hotrefresh("rollout", "plan", "pics", "--to", "stranger")[0] == ExitCode.INCONCLUSIVE


def test_an_artifact_that_was_changed_is_found_by_verify_and_by_the_doctor(world, hotrefresh):
    weights = Path(model(world, "kin")["uri"]) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, _ = hotrefresh("model", "verify", "-o", "json")
    assert code == ExitCode.ERROR
    assert [m["name"] for m in json.loads(out)["models"] if not m["ok"]] == ["kin"]
    code, out, _ = hotrefresh("doctor")
    assert code == ExitCode.ERROR
    assert [line.split()[1] for line in out.splitlines() if line.startswith("finding")] == [
        "models",
        "workers",
    ]


def test_items_that_cannot_be_read_are_quarantined_and_the_exit_code_says_so(
    context, hotrefresh, json_of, tmp_path
):
    pictures = platform.draw_pictures(tmp_path / "p", 1)
    (pictures / "class-00" / "0.png").write_bytes(b"no picture")
    galleries.create_gallery(context, "pics", str(pictures))
    platform.register_network(context, tmp_path, "old", seed=0)
    row = embed.embed_gallery(context, "pics", "old")
    platform.work(context, row.id)
    code, _, err = hotrefresh("rollout", "status", "-w", "pics")
    assert code == ExitCode.QUARANTINED, err
    found = json_of("ledger", "errors", "--gallery", "pics")["errors"]
    assert [(e["item"], e["class"]) for e in found] == [("class-00/0.png", "unsupported")]


def test_waiting_ends_at_its_time_out_and_the_rollout_goes_on(world, hotrefresh):
    row = platform.start(world)
    code, _, err = hotrefresh("rollout", "status", "-w", row.id, "--timeout", "0.1")
    assert code == ExitCode.WAIT_TIMED_OUT
    assert "it goes on" in err
    assert rollouts.reread(world, row.id).state == "deployed"


def test_a_downgrade_shows_what_it_drops_and_needs_a_yes(world, hotrefresh, json_of):
    assert json_of("db", "current")["up_to_date"]
    code, _, err = hotrefresh("db", "downgrade", "base")
    assert code == ExitCode.USAGE
    assert "2 models, 1 galleries, 1 rollouts" in err
    assert hotrefresh("db", "downgrade", "nonsense", "--yes")[0] == ExitCode.USAGE
    assert json_of("db", "current")["up_to_date"]
    assert json_of("db", "downgrade", "base", "--yes")["after"] is None
    assert json_of("db", "upgrade")["after"] == json_of("db", "current")["head"]


def test_training_registers_a_model_that_embeds(context, hotrefresh, json_of, tmp_path):
    pictures = platform.draw_pictures(tmp_path / "p", 2)
    train = ("model", "train", "--data", pictures, "--size", 16, "--mode", "L", "--epochs", 1, "--threads", 1)
    assert json_of(*train, "old")["manifest"]["training"]["method"] == "independent"
    made = json_of(*train, "new", "--method", "bct", "--old", "old")
    assert made["manifest"]["preprocessing"]["size"] == 16
    models.verify_model(context, "new")
    assert not list(context.settings.artifacts.glob(".new-*")), "nothing is left beside the artifacts"


def test_a_text_encoder_is_imported_by_its_size(hotrefresh, json_of):
    pytest.importorskip("wordllama")
    assert json_of("model", "import", "small", "--wordllama", 64)["dim"] == 64
    assert hotrefresh("model", "import", "wide", "--wordllama", 1000)[0] == ExitCode.USAGE


def test_nothing_is_left_by_an_import_that_fails(context, hotrefresh, tmp_path):
    folder = platform.save_network(tmp_path, "old", seed=0)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "weights.safetensors").write_bytes(b"\0" * 10)
    before = sorted(context.settings.artifacts.iterdir())
    assert hotrefresh("model", "import", "broken", broken)[0] == ExitCode.ERROR
    assert sorted(context.settings.artifacts.iterdir()) == before


def test_without_any_configuration_servers_and_worker_start_by_themselves(tmp_path):
    """As a newcomer: an empty folder, own processes; a folder named like our package lies in the way."""
    platform.draw_pictures(tmp_path / "pictures", 1)
    platform.save_network(tmp_path / "artifacts", "old", seed=0)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('this is not our package')\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOTREFRESH_")}
    environment |= {"HOTREFRESH_WORKER_IDLE_S": "1", "HOTREFRESH_HEARTBEAT_S": "0.3"}

    def run(*arguments):
        command = [str(Path(sys.executable).with_name("hotrefresh")), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    assert run("gallery", "create", "pics", "pictures").returncode == 0
    assert run("model", "import", "old", "artifacts/old").returncode == 0
    embedded = run("gallery", "embed", "pics", "--model", "old", "-o", "json")
    assert embedded.returncode == 0, embedded.stderr
    assert json.loads(embedded.stdout)["committed"] == 40
    assert "started in the background" in embedded.stderr
    log = (tmp_path / ".hotrefresh" / "logs" / "worker.log").read_text()
    worker = int(json.loads(log.splitlines()[0])["worker_id"].split("-")[-2])
    gone = time.monotonic() + 60
    while psutil.pid_exists(worker):
        assert time.monotonic() < gone, "a worker without work leaves by itself"
        time.sleep(0.1)
    assert run("doctor").returncode == 0
