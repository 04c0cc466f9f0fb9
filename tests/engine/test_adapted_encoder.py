"""An adapted encoder is a model like any: imported from its folder, verified, measured, and a gallery is embedded by it."""

from __future__ import annotations

import numpy as np

from models.artifact import load_manifest
from models.datasets import list_items
from models.encoders import load_encoder
from models.encoders.images import ImagePreprocessing
from models.taca.training import AdaptOptions, adapt_encoder
from models.training import TrainingOptions, read_pictures, train_encoder
from orchestrator.service import certify, embed, galleries, models
from tests.engine import platform
from tests.engine.strategies import embed as embedded

NEW = TrainingOptions(
    "vit", {"patch": 4, "width": 16, "depth": 2, "heads": 2}, 24, ImagePreprocessing(size=platform.EDGE), epochs=2,
    batch_size=32,
)  # fmt: skip
ADAPT = AdaptOptions("symmetric", rank=4, contrast=0.0, epochs=2, batch_size=32)


def test_it_is_imported_verified_certified_and_embeds_a_gallery_in_the_old_space(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    pictures = read_pictures(list_items(str(tmp_path / "pictures")).items, NEW.preprocessing)
    new = train_encoder(pictures, tmp_path / "new", name="new", options=NEW)
    folder = tmp_path / "adapted"
    adapt_encoder(pictures, new, tmp_path / "old", folder, name="adapted", options=ADAPT)

    row = models.import_model(context, folder, "adapted")
    assert (row.architecture, row.dim, row.modality) == ("vit_adapted", 32, "image")  # 32 are the old model's
    assert models.verify_model(context, "adapted").fingerprint == load_manifest(folder).fingerprint
    request = certify.CertifyRequest("old", "adapted", "pics", minimum_queries=20)
    assert certify.certify(context, request).verdict in ("certified", "refused")  # measured, whichever it is

    galleries.create_gallery(context, "again", str(tmp_path / "pictures"))
    assert platform.work(context, embed.embed_gallery(context, "again", "adapted").id).state == "finalized"
    expected = load_encoder(folder).encode(pictures.pixels)
    np.testing.assert_allclose(embedded(context, "adapted"), expected, atol=1e-5)
