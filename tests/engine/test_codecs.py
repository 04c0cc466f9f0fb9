"""Codecs by service and by command: trained on what is stored, registered, certified, or refused with what to do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from models.codecs import CODECS
from models.codecs.coded import unit_codes
from orchestrator.errors import ConflictError, ExitCode, NotCertifiedError, NotFoundError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries.models import model_by_name
from orchestrator.service import certify, codecs, items, listings
from orchestrator.service.codecs import TrainCodecRequest
from orchestrator.service.stored import floats_of_rows
from orchestrator.serving.embedding import encode_uris, no_progress
from tests.engine import platform
from tests.engine.strategies import embed

QUICK = {"recurrent": {"steps": 20, "hidden": 16}, "hash": {"steps": 20, "hidden": 16}}


def train(context, name="codes", **more):
    return codecs.train_codec(context, TrainCodecRequest(name, "pics", **more), no_progress)


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def test_every_codec_is_fitted_and_certified_without_reading_an_item(world, tmp_path):
    floats = embed(world, "old")
    shutil.rmtree(tmp_path / "pictures")
    for method in CODECS:
        bits = 1 if method == "hash" else 3
        row = train(world, method, method=method, bits=bits, width=40, options=QUICK.get(method))
        assert (row.modality, row.dim, row.code_shape.bits) == ("image", 40, bits)
        assert world.base_of(row).name == "old"
        found = codecs.certify_codec(world, method, "pics", minimum_queries=20, loss=1.0)
        cost = found.measured["quantisation"]
        assert cost["recall_of_floats"] == pytest.approx(found.measured["old_old"])
        assert cost["recall_of_codes"] == pytest.approx(
            (found.measured["uncalibrated"] or found.measured)["curve"][-1]["value"]
        )
        assert cost["negative"] - cost["positive"] == round(
            (cost["recall_of_floats"] - cost["recall_of_codes"]) * cost["queries"]
        )
        again = unit_codes(world.codec(row), floats)
        assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-6)


def test_a_codecs_encoder_is_its_base_model_with_the_codec_behind_it(world):
    row = train(world)
    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        uris = [item.uri for item in gallery_queries.items_of_rows(connection, gallery.id, [0, 7, 20])]
    base, _ = encode_uris(world.encoder(world.base_of(row)), uris)
    coded, failed = encode_uris(world.encoder(row), uris)
    assert not failed
    assert world.encoder(row).dim == 32
    assert np.array_equal(coded, unit_codes(world.codec(row), base))
    assert len(np.unique(np.round(np.abs(coded[0]) / np.abs(coded[0]).min()))) <= 4


def test_what_a_codec_cannot_do_is_said(world):
    train(world)
    with pytest.raises(NotFoundError, match="'old' is a model and no codec; there are: codes"):
        codecs.certify_codec(world, "old", "pics")
    with pytest.raises(UsageError, match="is a codec itself"):
        train(world, "more", model="codes")
    with pytest.raises(UsageError, match="leave --width out"):
        train(world, "wider", like="codes", width=64)
    folder = world.artifact(codecs_row(world, "codes"))
    with pytest.raises(ConflictError, match="was not fitted on embeddings of 'kin'"):
        codecs.import_codec_of(world, folder, "copy", "kin")
    train(world, "of-kin", model="kin")
    with pytest.raises(NotCertifiedError, match="encodes embeddings of another model than 'old'"):
        codecs.certify_codec(world, "of-kin", "pics")
    with pytest.raises(NotCertifiedError, match="hotrefresh codec train NAME --model kin --like codes"):
        certify.check_codecs(codecs_row(world, "codes"), codecs_row(world, "kin"))


def test_what_was_deleted_is_not_learned_from(world):
    rows = np.arange(6)
    items.delete_items(world, "pics", ["class-00/1.png", "class-00/4.png"])
    floats, failed = floats_of_rows(world, "pics", codecs_row(world, "old"), rows, no_progress)
    assert failed == {1, 4}
    assert np.array_equal(floats.any(axis=1), ~np.isin(rows, [1, 4]))


def codecs_row(context, name):
    with context.engine.connect() as connection:
        return model_by_name(connection, name)


def test_codecs_by_command(world, hotrefresh):
    code, _, err = hotrefresh("codec", "train", "small", "--gallery", "pics", "--bits", 3)
    assert code == ExitCode.DONE
    assert "12 bytes instead of 128 of old" in err
    assert "hotrefresh codec certify small --gallery pics" in err
    code, out, _ = hotrefresh(
        "codec", "certify", "small", "--gallery", "pics", "--minimum-queries", 20, "--loss", 0.5
    )
    assert code == ExitCode.DONE
    assert "certified" in out
    assert "codes alone" in out
    code, out, err = hotrefresh(
        "codec", "certify", "small", "--gallery", "pics", "--minimum-queries", 100_000
    )
    assert (code, "inconclusive" in out) == (ExitCode.INCONCLUSIVE, True)
    listed = json.loads(hotrefresh("codec", "list", "-o", "json")[1])["codecs"]
    assert [(c["name"], c["base"], c["bits"], c["bytes_a_row"]) for c in listed] == [("small", "old", 3, 12)]
    shown = json.loads(hotrefresh("codec", "show", "small", "-o", "json")[1])
    assert [c["verdict"] for c in shown["certificates"]] == ["inconclusive", "certified"]
    assert hotrefresh("codec", "show", "small")[0] == ExitCode.DONE
    folder = world.artifact(codecs_row(world, "small"))
    assert hotrefresh("codec", "import", "again", folder, "--model", "old")[0] == ExitCode.DONE
    kinds = {row["name"]: row["kind"] for row in listings.models(world)}
    assert kinds["again"] == kinds["small"] == "codec"
    code, _, err = hotrefresh("rollout", "plan", "pics", "--to", "kin", "--codec", "small")
    assert (code, "one of them" in err) == (ExitCode.USAGE, True)
