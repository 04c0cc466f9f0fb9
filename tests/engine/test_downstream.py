"""Downstream contracts: no rollout breaks a frozen module that is registered, and which one it would is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from models import downstream as modules
from models.artifact import load_manifest
from models.datasets import list_items
from models.encoders.images import ImagePreprocessing
from models.training import TrainingOptions, read_pictures, train_encoder
from orchestrator.errors import ArtifactError, ConflictError, ExitCode, NotCertifiedError, UsageError
from orchestrator.ledger.queries import downstream as queries
from orchestrator.ledger.queries.models import model_by_name
from orchestrator.service import certify as certify_pair
from orchestrator.service import codecs, contracts, downstream, finish, guide, models, traffic
from orchestrator.service import doctor as doctors
from orchestrator.service.downstream import CertifyModuleRequest, TrainModuleRequest
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.plan_preview import preview
from orchestrator.service.start import StartRequest
from orchestrator.serving.embedding import encode_uris, no_progress
from tests.engine import platform

VIT = TrainingOptions(
    "vit", {"patch": 4, "width": 16, "depth": 2, "heads": 2}, 24, ImagePreprocessing(size=platform.EDGE), epochs=1,
    batch_size=64,
)  # fmt: skip


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def train(context, tmp_path, name="labels", **more):
    request = TrainModuleRequest(name, "old", str(tmp_path / "pictures"), **{"steps": 100, **more})
    return downstream.train_module(context, request)


def certify(context, name="labels", model="kin", **more):
    return downstream.certify_module(
        context, CertifyModuleRequest(name, model, **{"gallery": "pics", **more})
    )


def test_a_rollout_that_would_break_a_module_is_refused_and_named_until_it_is_certified(world, tmp_path):
    row = train(world, tmp_path)
    module = world.module(row)
    assert (row.metric, row.dim, row.digest) == ("accuracy", 32, module.digest)
    for ask in (lambda: platform.start(world), lambda: preview(world, StartRequest("pics", "kin"))):
        with pytest.raises(NotCertifiedError, match=r"'labels'.*never measured with 'kin'") as caught:
            ask()
        assert "hotrefresh downstream certify labels kin --gallery pics" in str(caught.value)

    assert guide.next_command(world) == "downstream certify labels kin --gallery pics"
    found = certify(world, loss=0.05)
    assert guide.next_command(world) == "rollout start pics --to kin"
    assert (found.verdict, found.n, found.source) == ("certified", 240, "gallery pics")
    vectors = [world.encoder(model_of(world, name)) for name in ("old", "kin")]
    pictures = read_pictures(
        list_items(str(tmp_path / "pictures")).items, ImagePreprocessing(size=platform.EDGE)
    )
    measured = [module.evaluate(each.encode(pictures.pixels), pictures.labels) for each in vectors]
    assert [found.old_value, found.new_value] == pytest.approx(measured)
    assert found.low <= found.new_value - found.old_value <= found.high

    rollout = platform.start(world)
    assert platform.work(world, rollout.id).state == "finalizable"
    assert finish.finalize(world, rollout.id).state == "finalized"
    assert world.module(row).digest == row.digest == load_manifest(world.artifact(row)).digest

    # It works on with kin: what comes after kin must not break it either.
    platform.register_network(world, tmp_path, "next", seed=0, moved=0.03)
    platform.certify_pair(world, "kin", "next")
    with pytest.raises(NotCertifiedError, match="'labels', made for 'old', was never measured with 'next'"):
        platform.start(world, "next")
    platform.certify_pair(world, "kin", "old")
    assert platform.start(world, "old").state == "deployed"  # back home: nothing to certify


def model_of(context, name):
    with context.engine.connect() as connection:
        return model_by_name(connection, name)


def test_a_refused_module_holds_a_rollout_back_until_it_is_retired(world, tmp_path):
    train(world, tmp_path)
    platform.register_network(world, tmp_path, "stranger", seed=5)
    platform.certify_by_hand(world, "stranger")
    assert certify(world, model="stranger").verdict == "refused"
    assert certify(world, model="stranger", minimum=1000).verdict == "inconclusive"  # and takes nothing back
    with pytest.raises(
        NotCertifiedError, match="'labels', made for 'old', was refused with 'stranger': it scores"
    ):
        platform.start(world, "stranger")
    assert downstream.retire_module(world, "labels").retired_at is not None
    with pytest.raises(ConflictError, match="retired"):
        certify(world, model="stranger")
    assert platform.start(world, "stranger").state == "deployed"


def test_a_model_of_another_dim_cannot_feed_a_module(world, tmp_path):
    train(world, tmp_path)
    platform.register_network(world, tmp_path, "wide", seed=0, dim=48)
    with pytest.raises(NotCertifiedError, match="takes 32 dimensions and 'wide' emits 48"):
        certify(world, model="wide")
    with world.engine.connect() as connection:
        known = queries.contracts(connection, model_of(world, "wide").id, [model_of(world, "old").id])
    assert [(row.module, row.serves, row.verdict) for row in known] == [("labels", True, None)]


def test_a_certificate_refused_later_stops_the_canary_and_the_end_but_not_the_work(world, tmp_path):
    train(world, tmp_path)
    platform.register_network(world, tmp_path, "stranger", seed=5)
    platform.certify_by_hand(world, "stranger")
    assert certify(world, model="stranger", loss=1.0).verdict == "certified"
    rollout = platform.start(world, "stranger", canary=10.0)
    assert contracts.broken_meanwhile(world) == []
    assert certify(world, model="stranger").verdict == "refused"
    assert [who for who, _ in contracts.broken_meanwhile(world)] == [rollout.id]
    with pytest.raises(NotCertifiedError, match="'labels'"):
        traffic.change(world, rollout.id, canary=50.0)
    assert traffic.change(world, rollout.id, canary=5.0).id == rollout.id  # less of it breaks less
    assert platform.work(world, rollout.id).state == "finalizable"
    with world.engine.connect() as connection:
        names = {each.name for each in finish.blockers(connection, finish.reread(world, rollout.id))}
    assert names == {"canary", "downstream"}
    broken = next(
        each for each in doctors.diagnose(world.settings, lambda: world) if each.name == "downstream"
    )
    assert not broken.ok
    assert "labels" in broken.found


def test_a_query_adapter_leaves_a_module_what_it_had_and_what_comes_after_it_does_not(world, tmp_path):
    train(world, tmp_path)
    models.fit_adapter(world, "old", "kin", "pics", name="back", method="procrustes", query_side=True)
    request = certify_pair.CertifyRequest("old", "kin", "pics", adapter="back", minimum_queries=20)
    assert certify_pair.certify(world, request).verdict == "certified"
    rollout = platform.start(world, adapter="back")  # the stored vectors stay those of old
    evaluate_rollout(world, rollout.id, {})
    assert finish.finalize(world, rollout.id).state == "finalized"
    platform.register_network(world, tmp_path, "next", seed=0, moved=0.03)
    platform.certify_pair(world, "old", "next")
    with pytest.raises(NotCertifiedError, match="'labels'"):
        platform.start(world, "next")


def test_a_codec_is_measured_by_what_its_codes_stand_for(world, tmp_path):
    train(world, tmp_path)
    codecs.train_codec(world, codecs.TrainCodecRequest("codes", "pics"), no_progress)
    codecs.certify_codec(world, "codes", "pics", minimum_queries=20, loss=1.0)
    with pytest.raises(NotCertifiedError, match="'labels'"):
        platform.start(world, "codes")
    assert certify(world, model="codes").verdict == "refused"  # a rotation is another space to a head
    found = certify(world, model="codes", loss=1.0)
    pictures = sorted((tmp_path / "pictures").rglob("*.png"))
    encoded, _ = encode_uris(world.encoder(model_of(world, "codes")), [f"file:{path}" for path in pictures])
    labels = [path.parent.name for path in pictures]
    module = world.module(modules_row(world, "labels"))
    assert found.new_value == pytest.approx(module.evaluate(encoded, labels))
    assert platform.start(world, "codes").state == "deployed"


def modules_row(context, name):
    with context.engine.connect() as connection:
        return queries.module_by_name(connection, name)


def test_changed_bytes_are_refused(world, tmp_path):
    row = train(world, tmp_path)
    folder = world.artifact(row)
    module = world.module(row)
    swapped = modules.ClassificationHead(module.weight, module.bias, module.classes[::-1])
    shutil.rmtree(folder)
    modules.save(swapped, folder, "labels", model_of(world, "old").fingerprint)
    with pytest.raises(ArtifactError, match="not the one that was registered"):
        certify(world)  # the same weights under other names of classes
    (folder / "weights.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        certify(world)
    with pytest.raises(ArtifactError):
        downstream.register_module(world, folder, "again", "old")
    found = next(
        each for each in doctors.diagnose(world.settings, lambda: world) if each.name == "downstream"
    )
    assert "labels" in found.found
    assert not found.ok


def test_what_cannot_be_a_contract_is_said(world, tmp_path):
    row = train(world, tmp_path)
    with pytest.raises(ConflictError, match="not made for embeddings of 'kin'"):
        downstream.register_module(world, world.artifact(row), "other", "kin")
    assert downstream.register_module(world, world.artifact(row), "labels", "old").id == row.id
    with pytest.raises(ConflictError, match="already"):
        train(world, tmp_path)
    with pytest.raises(UsageError, match="choose one of head, text-tower"):
        train(world, tmp_path, "other", kind="tail")
    with pytest.raises(UsageError, match="one of them"):
        certify(world, source=str(tmp_path / "pictures"))
    with pytest.raises(ConflictError, match="made for 'old'"):
        certify(world, model="old")
    other = platform.draw_pictures(tmp_path / "others")
    for folder in list(other.iterdir()):
        folder.rename(other / f"unheard-of-{folder.name}")
    with pytest.raises(UsageError, match="no readable item with a label"):
        certify(world, gallery=None, source=str(other))


def test_modules_and_adapted_encoders_by_command(world, tmp_path, hotrefresh):
    pictures = read_pictures(list_items(str(tmp_path / "pictures")).items, VIT.preprocessing)
    models.import_model(world, train_encoder(pictures, tmp_path / "big", name="big", options=VIT), "big")
    train_args = ("--model", "old", "--data", "pictures", "--steps", 50)
    code, _, err = hotrefresh("downstream", "train", "texts", *train_args, "--kind", "text-tower")
    assert (code, "frozen with digest" in err) == (ExitCode.DONE, True)
    adapt = ("model", "adapt-encoder", "both", "--new", "big", "--old", "old", "--data", "pictures")
    code, _, err = hotrefresh(*adapt, "--texts", "texts", "--rank", 4, "--epochs", 1, "--batch-size", 64)
    assert code == ExitCode.DONE
    assert "vit_adapted, 32 dimensions" in err
    assert "hotrefresh model certify old both --gallery pics" in err
    training = model_of(world, "both").manifest["training"]
    assert (training["method"], training["contrast"], training["epochs"]) == ("taca-style", 1.0, 1.0)

    code, out, _ = hotrefresh("downstream", "certify", "texts", "both", "--gallery", "pics", "--loss", 1)
    assert (code, "certified: it scores" in out) == (ExitCode.DONE, True)
    code, out, _ = hotrefresh("downstream", "certify", "texts", "big", "--gallery", "pics")
    assert code == ExitCode.NOT_CERTIFIED
    code, out, _ = hotrefresh("downstream", "show", "texts", "-o", "json")
    shown = json.loads(out)
    assert (shown["intact"], [c["verdict"] for c in shown["certificates"]]) == (True, ["certified"])
    assert hotrefresh("downstream", "show", "texts")[0] == ExitCode.DONE
    code, _, err = hotrefresh("rollout", "start", "pics", "--to", "kin")
    assert (code, "'texts'" in err) == (ExitCode.NOT_CERTIFIED, True)
    assert hotrefresh("downstream", "retire", "texts")[0] == ExitCode.DONE
    listed = json.loads(hotrefresh("downstream", "list", "-o", "json")[1])["modules"]
    assert [(row["name"], row["retired_at"] is None) for row in listed] == [("texts", False)]
    assert np.isclose(listed[0]["dim"], 32)

    for more, code, said in (
        (("--new", "kin"), ExitCode.USAGE, "adapters go into the layers of a vit"),
        (("--contrast", 1), ExitCode.USAGE, "--texts"),
        (("--placement", "sideways"), ExitCode.USAGE, "choose one of serial"),
        (("--texts", "nothing"), ExitCode.NOT_FOUND, "there is no downstream module 'nothing'"),
    ):
        found, _, err = hotrefresh(*(*adapt[:2], "more", *adapt[3:], *more))
        assert (found, said in err) == (code, True), err
