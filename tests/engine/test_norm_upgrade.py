"""Another norm is another model: a vision transformer goes from layer norm to dynamic token normalisation by an upgrade."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models.artifact import save_artifact
from models.encoders import architecture_module
from models.encoders.images import ImagePreprocessing
from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.service import certify, embed, finish, galleries, models, training
from tests.engine import platform

NETWORK = {"patch": 4, "width": 32, "depth": 1, "heads": 4}
PREPROCESSING = ImagePreprocessing(size=platform.EDGE)


def register(context: Context, folder: Path, name: str, **norm: object) -> None:
    """A random network; all have the same weights but those of their norms."""
    options = {**NETWORK, **norm}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture_module("vit").build(options, 32, PREPROCESSING)
    save_artifact(
        folder / name, network.state_dict(), kind="encoder", name=name, architecture="vit", options=options,
        modality="image", preprocessing=asdict(PREPROCESSING), dim=32,
    )  # fmt: skip
    models.import_model(context, folder / name, name)


def test_a_norm_that_is_switched_is_refused_bare_certified_through_an_adapter_and_rolled_out(
    context, tmp_path
):
    galleries.create_gallery(context, "pics", str(platform.draw_pictures(tmp_path / "pictures")))
    asked = str(platform.draw_pictures(tmp_path / "queries", 3, seed=7))
    galleries.import_query_set(context, "pics", "asked", asked)
    register(context, tmp_path, "layer")
    register(context, tmp_path, "dynamic", norm="dtn")
    assert platform.work(context, embed.embed_gallery(context, "pics", "layer").id).state == "finalized"

    assert platform.certify_pair(context, "layer", "dynamic") == "refused"
    models.fit_adapter(context, "layer", "dynamic", "pics", name="lift", method="low_rank", views=0)
    request = certify.CertifyRequest("layer", "dynamic", "pics", adapter="lift", minimum_queries=20)
    assert certify.certify(context, request).verdict == "certified"
    started = platform.start(context, "dynamic", adapter="lift")
    assert platform.work(context, started.id).state == "finalizable"
    assert finish.finalize(context, started.id).state == "finalized"


def test_a_network_of_ones_own_is_trained_and_its_options_are_kept(context, tmp_path):
    pictures = str(platform.draw_pictures(tmp_path / "pictures", 1))
    request = training.TrainRequest(
        name="own", source=pictures, architecture="vit", network={**NETWORK, "norm": "dtn_var"}, size=16, mode="L",
        dim=16, epochs=1, batch_size=20, threads=1,
    )  # fmt: skip
    row = training.train_model(context, request)
    assert row.manifest["options"] == {**NETWORK, "norm": "dtn_var"}
    assert context.encoder(row).network.blocks[0].norm_mlp.variance_only


def test_a_network_that_cannot_be_is_refused_before_a_picture_is_read(context, tmp_path, monkeypatch):
    pictures = str(platform.draw_pictures(tmp_path / "pictures", 1))
    monkeypatch.setattr("models.training.read_pictures", lambda *_: pytest.fail("read"))
    for network, said in (({"colour": 1}, "cannot take colour"), ({"patch": 5}, "must divide size 16")):
        request = training.TrainRequest(
            name="odd", source=pictures, architecture="vit", network=network, size=16
        )
        with pytest.raises(UsageError, match=said):
            training.train_model(context, request)
