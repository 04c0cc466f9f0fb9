"""Another norm is another model: a vision transformer goes from layer norm to dynamic token normalisation by an upgrade."""

from __future__ import annotations

import pytest

from models.errors import UsageError
from orchestrator.context import Context
from orchestrator.service import embed, finish, galleries, training
from tests.engine import platform

NETWORK = {"patch": 4, "width": 32, "depth": 2, "heads": 4}
"""On pictures of 16 pixels: a grid of 4 x 4 tokens."""


def train(context: Context, name: str, source: str, **more) -> None:
    request = training.TrainRequest(
        name=name, source=source, architecture="vit", size=16, mode="L", dim=32, epochs=40, batch_size=48, threads=1,
        **more,
    )  # fmt: skip
    training.train_model(context, request)


def test_layer_norm_to_dynamic_token_normalisation_is_certified_and_rolled_out(context, tmp_path):
    pictures = str(platform.draw_pictures(tmp_path / "pictures"))
    galleries.create_gallery(context, "pics", pictures)
    asked = str(platform.draw_pictures(tmp_path / "queries", 3, seed=7))
    galleries.import_query_set(context, "pics", "asked", asked)
    train(context, "layer", pictures, network=NETWORK)
    assert platform.work(context, embed.embed_gallery(context, "pics", "layer").id).state == "finalized"

    train(context, "dynamic", pictures, network={**NETWORK, "norm": "dtn"}, old="layer", method="bct", seed=1)
    with context.engine.connect() as connection:
        model = training.find_model(connection, "dynamic")
    assert model.manifest["options"]["norm"] == "dtn"
    assert platform.certify_pair(context, "layer", "dynamic") == "certified"
    started = platform.start(context, "dynamic")
    done = platform.work(context, started.id)
    assert done.state == "completed"
    assert finish.finalize(context, started.id).state == "finalized"


def test_a_network_that_cannot_be_is_refused_before_a_picture_is_read(context, tmp_path, monkeypatch):
    pictures = str(platform.draw_pictures(tmp_path / "pictures", 1))
    monkeypatch.setattr("models.training.read_pictures", lambda *_: pytest.fail("read"))
    with pytest.raises(UsageError, match="cannot take colour"):
        train(context, "odd", pictures, network={"colour": 1})
    with pytest.raises(UsageError, match="must divide size 16"):
        train(context, "odd", pictures, network={"patch": 5, "norm": "dtn"})
