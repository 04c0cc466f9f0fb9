from collections import defaultdict

import numpy as np
import pytest

from models.adapters import ADAPTERS, fit_adapter, load_adapter
from models.artifact import save_artifact
from models.errors import ArtifactError, UsageError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rotated_pairs(n=400, d_old=8, d_new=8, seed=0, shift=0.3):
    """Old vectors off the origin, and the same cloud turned into the new space."""
    rng = np.random.default_rng(seed)
    old = unit(rng.normal(size=(n, d_old)) * 0.3 + shift)
    turn = np.linalg.qr(rng.normal(size=(max(d_old, d_new),) * 2))[0][:d_old, :d_new]
    return old, unit((old - old.mean(0)) @ turn + rng.normal(size=d_new) * 0.3)


def fit(tmp_path, method, old, new, **more):
    more = {"seed": 0, **more}
    fit_adapter(
        method, old, new, folder=tmp_path / "a", name="a", modality="image",
        source_fingerprint="from", target_fingerprint="to", **more,
    )  # fmt: skip
    return load_adapter(tmp_path / "a")


_STEPS = {"steps": 150, "batch_size": 64, "learning_rate": 1e-2}
# Options that fit in a second; an adapter that is not here is fitted as it is.
SMALL = defaultdict(dict) | {
    "mlp": {"hidden": 24, **_STEPS},
    "residual_mlp": {"hidden": 24, **_STEPS},
    "bict": {"hidden": 24, **_STEPS},
    "fct": {"inner": 48, **_STEPS},
    "fastfill": {"inner": 48, **_STEPS},
    "lambda_orthogonal": {**_STEPS, "steps": 300},
}
# By rule, not by fitting: two clouds turned against each other stay so.
FITTED = sorted(set(ADAPTERS) - {"leading"})


def classes(new, count=40):
    """Each item's nearest of some prototypes in the new space: what a classifier there would know."""
    prototypes = unit(new[:count])
    return {"prototypes": prototypes, "labels": (new @ prototypes.T).argmax(axis=1)}


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize(("d_old", "d_new"), [(8, 8), (6, 10), (10, 6)])
def test_an_adapter_brings_old_vectors_of_unseen_items_close_to_their_new_ones(
    tmp_path, method, d_old, d_new
):
    old, new = rotated_pairs(d_old=d_old, d_new=d_new)
    adapter = fit(tmp_path, method, old[:300], new[:300], options=SMALL[method], **classes(new[:300]))
    lifted, log_variance = adapter.transform(old[300:])
    assert (np.ptp(log_variance) > 0) == adapter.predicts_uncertainty
    assert lifted.shape == (100, d_new)
    assert lifted.dtype == np.float32
    assert log_variance.shape == (100,)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 1, atol=1e-5)
    assert (lifted * new[300:]).sum(1).mean() > (np.roll(lifted, 1, axis=0) * new[300:]).sum(1).mean() + 0.05
    # Chance is 0.01. Those that learn classes draw the items of one together, so fewer find their very own.
    least = 0.1 if method in ("fastfill", "bict") else 0.3
    assert ((lifted @ new[300:].T).argmax(1) == np.arange(100)).mean() > least


def test_procrustes_recovers_a_rotation_of_centred_clouds_exactly(tmp_path):
    rng = np.random.default_rng(1)
    old = unit(rng.normal(size=(200, 6)))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    adapter = fit(tmp_path, "procrustes", old, unit(old @ turn))
    lifted, log_variance = adapter.transform(old)
    np.testing.assert_allclose(lifted, old @ turn, atol=1e-4)
    assert np.ptp(log_variance) == 0


@pytest.mark.parametrize("method", sorted(ADAPTERS))
def test_the_same_seed_gives_the_same_adapter_and_what_is_saved_is_what_transforms(tmp_path, method):
    old, new = rotated_pairs()
    first, second = (
        fit(tmp_path / turn, method, old, new, options=SMALL[method], **classes(new)) for turn in "12"
    )
    assert np.array_equal(first.transform(old)[0], second.transform(old)[0])
    assert first.manifest.digest == second.manifest.digest
    assert first.manifest.fingerprint == second.manifest.fingerprint


def test_another_seed_gives_another_mlp(tmp_path):
    old, new = rotated_pairs()
    digests = {
        fit(tmp_path / str(seed), "mlp", old, new, seed=seed, options=SMALL["mlp"]).manifest.digest
        for seed in (0, 1)
    }
    assert len(digests) == 2


def test_the_manifest_names_both_spaces(tmp_path):
    manifest = fit(tmp_path, "procrustes", *rotated_pairs()).manifest
    assert manifest.kind == "adapter"
    assert manifest.options["source_fingerprint"] == "from"
    assert manifest.options["target_fingerprint"] == "to"
    assert (manifest.options["source_dim"], manifest.dim) == (8, 8)


@pytest.mark.parametrize("method", ["mlp", "fastfill"])
def test_the_predicted_variance_is_larger_where_the_new_vectors_cannot_be_told(tmp_path, method):
    old, new = rotated_pairs(n=2000)
    rng = np.random.default_rng(5)
    unsure = old[:, 0] > np.median(old[:, 0])
    new[unsure] = unit(new[unsure] + rng.normal(size=(unsure.sum(), 8)) * 0.5)
    told = classes(new, count=8)
    told["labels"] = np.where(unsure, rng.permutation(told["labels"]), told["labels"])
    options = {**SMALL[method], "steps": 300}
    _, log_variance = fit(tmp_path, method, old, new, options=options, **told).transform(old)
    assert (log_variance[unsure][:, None] > log_variance[~unsure]).mean() > 0.9  # chance: 0.5


def test_large_inputs_are_transformed_in_chunks_to_the_same_vectors(tmp_path, monkeypatch):
    old, new = rotated_pairs()
    adapter = fit(tmp_path, "mlp", old, new, options=SMALL["mlp"])
    whole, _ = adapter.transform(old)
    monkeypatch.setattr("models.adapters.networks._CHUNK_ROWS", 7)
    parts, _ = adapter.transform(old)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_the_classification_term_pulls_lifted_vectors_to_their_prototypes(tmp_path):
    old, new = rotated_pairs()
    prototypes = unit(np.random.default_rng(3).normal(size=(4, 8)))
    labels = np.arange(len(old)) % 4
    old = unit(old + 0.8 * prototypes[labels])
    options = {**SMALL["mlp"], "contrast": 0.0}
    closeness = []
    for weight in (0.0, 20.0):
        adapter = fit(
            tmp_path / str(weight), "mlp", old, new, prototypes=prototypes, labels=labels,
            options={**options, "classify": weight},
        )  # fmt: skip
        closeness.append((adapter.transform(old)[0] * prototypes[labels]).sum(1).mean())
    assert closeness[1] > closeness[0] + 0.1


def test_wrong_dims_are_refused(tmp_path):
    adapter = fit(tmp_path, "procrustes", *rotated_pairs())
    with pytest.raises(ValueError, match=r"\(n, 8\)"):
        adapter.transform(np.zeros((3, 9), np.float32))


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("magic", {}, "choose one of"),
        ("mlp", {"options": {"colour": 1}}, "cannot take"),
        ("mlp", {"options": {"classify": 1.0}}, "needs labelled pairs"),
        ("fastfill", {}, "needs labelled pairs"),
        ("bict", {}, "needs labelled pairs"),
        ("low_rank", {"options": {"rank": 0}}, "rank must be at least 1"),
        ("low_rank", {"options": {"ridge": -1.0}}, "ridge must be at least 0"),
        ("mlp", {"options": {"steps": 0}}, "steps must be at least 1"),
        ("mlp", {"options": {"steps": "many"}}, "needs steps as int, not 'many'"),
        ("mlp", {"options": {"steps": True}}, "needs steps as int"),
        ("mlp", {"options": {"batch_size": 1}}, "batch_size must be at least 2"),
        ("mlp", {"options": {"learning_rate": 0}}, "learning_rate must be above 0"),
        ("mlp", {"options": {"noise": -0.1}}, "noise must be at least 0"),
        ("mlp", {"options": {"hidden": 0}}, "hidden must be at least 1"),
        ("mlp", {"options": {"temperature": 0.0}}, "temperature must be above 0"),
        ("mlp", {"options": {"contrast": float("nan")}}, "contrast must be at least 0"),
        ("lambda_orthogonal", {"options": {"tolerance": -1.0}}, "tolerance must be at least 0"),
        ("residual_mlp", {"options": {"architecture": "bict"}}, "cannot take architecture"),
        ("procrustes", {"options": {"rank": 3}}, "it has no options"),
        ("bict", {"prototypes": np.eye(9, dtype=np.float32), "labels": np.zeros(400, int)}, "space of 8"),
        ("bict", {"prototypes": np.eye(8, dtype=np.float32), "labels": np.zeros(9, int)}, "as many labels"),
        ("bict", {"prototypes": np.eye(8, dtype=np.float32), "labels": np.full(400, 8)}, "places among 8"),
        ("bict", {"prototypes": np.eye(8, dtype=np.float32), "labels": np.full(400, -2)}, "places among 8"),
        ("mlp", {"old": np.zeros((5, 8), np.float32)}, "pairs"),
        ("mlp", {"old": np.full((400, 8), np.nan, np.float32)}, "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_a_usage_error(tmp_path, method, change, message):
    old, new = rotated_pairs()
    old = change.pop("old", old)
    with pytest.raises(UsageError, match=message):
        fit(tmp_path, method, old, new, **change)


def test_a_mistake_of_ours_inside_a_fit_is_no_usage_error(tmp_path, monkeypatch):
    def broken(task):
        raise TypeError("broken")

    monkeypatch.setattr("models.adapters.procrustes.fit", broken)
    with pytest.raises(TypeError, match="broken"):
        fit(tmp_path, "procrustes", *rotated_pairs())


def test_too_few_pairs_are_a_usage_error(tmp_path):
    old, new = rotated_pairs(n=5)
    with pytest.raises(UsageError, match="too few"):
        fit(tmp_path, "mlp", old, new)


def test_an_encoder_is_no_adapter(tmp_path):
    save_artifact(
        tmp_path / "e", {}, kind="encoder", name="e", architecture="mlp", options={}, modality="image",
        preprocessing={}, dim=4,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="not an adapter"):
        load_adapter(tmp_path / "e")
