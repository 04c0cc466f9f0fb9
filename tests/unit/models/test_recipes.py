from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from models import recipes
from models.adapters import load_adapter
from models.compat import METHODS, create_method
from models.datasets import glyphs
from models.encoders import load_encoder

TINY = recipes.Recipe(
    old=replace(recipes.FULL.old, epochs=0.02, network={"widths": [4, 8, 8]}),
    new=replace(recipes.FULL.new, epochs=0.02, network={"widths": [4, 8, 8]}),
    method_options=recipes.FULL.method_options,
    pairs=600,
    adapter={"hidden": 16, "steps": 3},
)


@pytest.mark.parametrize("recipe", [recipes.FULL, recipes.FAST], ids=["full", "fast"])
def test_a_recipe_trains_every_method_with_options_it_takes(recipe):
    assert set(recipe.method_options) == set(METHODS)
    for method, options in recipe.method_options.items():
        assert create_method(method, options).name == method
    assert recipe.old.dim == recipe.new.dim
    with pytest.raises(FrozenInstanceError):
        recipe.pairs = 1


def test_the_three_steps_make_models_that_fit_together(tmp_path):
    seen = []
    old = recipes.train_old(tmp_path / "old", 0, recipe=TINY)
    new = recipes.train_new("ract", tmp_path / "new", old, 0, recipe=TINY)
    folder = recipes.fit_adapter(
        tmp_path / "adapter",
        old,
        new,
        0,
        recipe=TINY,
        progress=lambda done, total: seen.append((done, total)),
    )
    adapter, first, second = load_adapter(folder), load_encoder(old), load_encoder(new)
    assert adapter.manifest.options["source_fingerprint"] == first.manifest.fingerprint
    assert adapter.manifest.options["target_fingerprint"] == second.manifest.fingerprint
    stored = first.encode(glyphs.pictures("queries")[0][:9, None])
    lifted, log_variance = adapter.transform(stored)
    assert lifted.shape == (9, second.dim)
    assert np.isfinite(log_variance).all()
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]


def test_old_and_new_model_are_trained_on_their_own_classes(tmp_path):
    old = recipes.train_old(tmp_path / "old", 0, recipe=TINY)
    new = recipes.train_new("independent", tmp_path / "new", old, 0, recipe=TINY)
    known, more = (set(load_encoder(folder).manifest.training["classes"]) for folder in (old, new))
    assert known < more
    assert not more & {item.label for item in glyphs.list_items("queries")}
