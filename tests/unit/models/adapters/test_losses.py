"""The fitted adapters' formulas, each against a slow loop or against what must hold of its solution."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.adapters import (
    bict,
    fastfill,
    fct,
    fit_adapter,
    lambda_orthogonal,
    load_adapter,
    mlp,
    residual_mlp,
)
from models.adapters.descent import Descent
from models.adapters.lambda_orthogonal import beyond_orthogonal
from models.adapters.losses import contrast_within
from models.adapters.networks import Psi, Recycler
from tests.unit.models.adapters.test_adapters import SMALL, classes, fit, rotated_pairs, unit

LABELS = [0, 2, -1, 1, 2]
PROTOTYPES = functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)), dim=1)


def outputs():
    """What a network gives for five pairs, (5, 4) not normalised and (5,), and their targets (5, 4)."""
    generator = torch.Generator().manual_seed(1)
    lifted, target = torch.randn(2, 5, 4, generator=generator)
    return lifted, torch.randn(5, generator=generator), functional.normalize(target, dim=1)


def normalised(row):
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def distance(row, target):
    return sum((a - b) ** 2 for a, b in zip(row, target, strict=True))


def cross_entropy(row, label, temperature, smoothing=0.0):
    """Of one row against PROTOTYPES, by the definition; 0 without a label."""
    if label < 0:
        return 0.0
    scores = [
        sum(a * b for a, b in zip(row, line, strict=True)) / temperature for line in PROTOTYPES.tolist()
    ]
    total = math.log(sum(math.exp(score) for score in scores))
    wanted = [(1 - smoothing) * (c == label) + smoothing / 3 for c in range(3)]
    return -sum(w * (score - total) for w, score in zip(wanted, scores, strict=True))


def weighed(error, s):
    return 0.5 * math.exp(-s) * error + 0.5 * s


def fastfill_of(rows, s, targets):
    """h as the network gives it, the distance a mean over coordinates, labels smoothed by 0.1."""
    return sum(
        weighed(distance(h, t) / 4 + cross_entropy(h, label, 0.5, 0.1), each)
        for h, t, label, each in zip(rows, targets, LABELS, s, strict=True)
    )


def mlp_of(rows, s, targets):
    found, lifted = 0.0, [normalised(row) for row in rows]
    for place, (h, t, label, each) in enumerate(zip(lifted, targets, LABELS, s, strict=True)):
        scores = [sum(a * b for a, b in zip(t, other, strict=True)) / 0.5 for other in lifted]
        infonce = math.log(sum(math.exp(score) for score in scores)) - scores[place]
        error = distance(h, t) + 0.7 * infonce + 1.3 * cross_entropy(h, label, 0.5, 0.1)
        found += weighed(error, each)
    return found


def bict_of(rows, s, targets):
    lifted = [normalised(row) for row in rows]
    return sum(
        distance(h, t) + 1.3 * cross_entropy(h, label, 0.5)
        for h, t, label in zip(lifted, targets, LABELS, strict=True)
    )


def fct_of(rows, s, targets):
    return sum(distance(h, t) for h, t in zip(rows, targets, strict=True))


def residual_of(rows, s, targets):
    return sum(distance(normalised(h), t) for h, t in zip(rows, targets, strict=True))


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (partial(fastfill.loss, prototypes=PROTOTYPES, temperature=0.5), fastfill_of),
        (partial(mlp.loss, prototypes=PROTOTYPES, contrast=0.7, classify=1.3, temperature=0.5), mlp_of),
        (partial(bict.loss, prototypes=PROTOTYPES, classify=1.3, temperature=0.5), bict_of),
        (fct.loss, fct_of),
        (residual_mlp.loss, residual_of),
    ],
    ids=["fastfill", "mlp", "bict", "fct", "residual_mlp"],
)
def test_a_loss_equals_its_formula_computed_by_a_loop(loss, by_hand):
    lifted, s, target = outputs()
    expected = by_hand(lifted.tolist(), s.tolist(), target.tolist()) / 5
    found = loss(lambda source: (lifted, s), torch.empty(5, 3), target, torch.tensor(LABELS))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_loss_under_a_relaxed_orthogonality_equals_its_formula_computed_by_a_loop():
    source, _, target = outputs()
    generator = torch.Generator().manual_seed(4)
    matrix, bias = torch.randn(4, 4, generator=generator), torch.randn(4, generator=generator)
    expected = 0.0
    for x, t in zip(source.tolist(), target.tolist(), strict=True):
        lifted = [sum(x[i] * float(matrix[i, j]) for i in range(4)) + float(bias[j]) for j in range(4)]
        expected += distance(normalised(lifted), t) / 5
    gram = [
        [sum(float(matrix[k, i] * matrix[k, j]) for k in range(4)) - (i == j) for j in range(4)]
        for i in range(4)
    ]
    penalty = math.sqrt(sum(value * value for line in gram for value in line)) - 0.3
    assert penalty > 0
    found = lambda_orthogonal.loss(matrix, bias, source, target, tolerance=0.3, weight=0.6)
    assert float(found) == pytest.approx(expected + 0.6 * penalty, rel=1e-5)


def test_the_contrast_equals_infonce_computed_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    h, new = torch.randn(2, 6, 4, generator=generator)
    for i in range(6):
        scores = [sum(float(new[i, k]) * float(h[j, k]) for k in range(4)) / 0.5 for j in range(6)]
        expected = math.log(sum(math.exp(score) for score in scores)) - scores[i]
        assert float(contrast_within(h, new, 0.5)[i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("network", [Psi(6, 4, hidden=8), Recycler(6, 4, inner=8)], ids=["psi", "recycler"])
def test_the_uncertainty_is_predicted_from_features_that_learn_from_it(network):
    """Its gradient reaches the layers that it stands on, and only these."""
    lifted, log_variance = network(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)))
    assert lifted.shape == (9, 4)
    assert log_variance.shape == (9,)
    log_variance.square().sum().backward()
    assert float(network.log_variance.weight.grad.norm()) > 0
    assert all(float(each.grad.norm()) > 0 for each in network.body[0].parameters())
    if isinstance(network, Psi):
        assert network.linear.weight.grad is None
        assert network.residual.weight.grad is None


_CLASSES = {"prototypes": PROTOTYPES, "temperature": 0.5}


@pytest.mark.parametrize(
    ("network", "loss", "idle"),
    [
        (Psi, partial(mlp.loss, contrast=1.0, classify=1.0, **_CLASSES), ()),
        (Psi, partial(bict.loss, classify=1.0, **_CLASSES), ("log_variance",)),
        (Psi, residual_mlp.loss, ("log_variance",)),
        (Recycler, partial(fastfill.loss, **_CLASSES), ()),
        (Recycler, fct.loss, ("log_variance",)),
    ],
    ids=["mlp", "bict", "residual_mlp", "fastfill", "fct"],
)
def test_a_loss_reaches_every_layer_but_an_uncertainty_that_it_does_not_predict(network, loss, idle):
    torch.manual_seed(0)
    net = network(6, 4)
    _, _, target = outputs()
    loss(net, torch.randn(5, 6), target, torch.tensor(LABELS)).backward()
    for name, parameter in net.named_parameters():
        if name.split(".")[0] in idle:
            assert parameter.grad is None, name
        else:
            assert float(parameter.grad.norm()) > 0, name


@pytest.mark.parametrize("method", sorted(SMALL))
def test_both_models_are_frozen_while_an_adapter_is_fitted(tmp_path, method):
    """Embeddings and the classifier's rows keep their bits, though the tensors share their memory."""
    old, new = rotated_pairs()
    told = classes(new)
    given = [old, new, told["prototypes"], told["labels"]]
    before = [each.copy() for each in given]
    fit(tmp_path, method, old, new, options=SMALL[method], **told)
    for each, kept in zip(given, before, strict=True):
        np.testing.assert_array_equal(each, kept)


def test_what_a_loss_is_shown_carries_no_gradient(tmp_path, monkeypatch):
    seen = []

    def spy(network, source, target, labels, **more):
        seen.append([source, target, labels, more["prototypes"]])
        return fastfill_loss(network, source, target, labels, **more)

    fastfill_loss = fastfill.loss
    monkeypatch.setattr(fastfill, "loss", spy)
    old, new = rotated_pairs()
    told = classes(new)
    fit(tmp_path, "fastfill", old, new, options={**SMALL["fastfill"], "steps": 3}, **told)
    assert len(seen) == 3
    for source, target, labels, prototypes in seen:
        assert not any(each.requires_grad for each in (source, target, prototypes))
        np.testing.assert_array_equal(prototypes, told["prototypes"])
        # The labels are those of the pairs that are shown.
        rows = [int(np.flatnonzero((new == row).all(axis=1))[0]) for row in target.numpy()]
        np.testing.assert_array_equal(labels, told["labels"][rows])
        np.testing.assert_array_equal(source, old[rows])


def test_procrustes_turns_about_the_means_whatever_they_are(tmp_path):
    """Uncentred, the offsets would turn the rotation: they are as long as the clouds are wide."""
    rng = np.random.default_rng(1)
    old = (rng.normal(size=(300, 6)) * [1, 2, 3, 1, 2, 3] + [9, 0, 0, 4, 0, 0]).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    new = ((old - old.mean(0)) @ turn + [0, 7, 0, 0, 0, 5]).astype(np.float32)
    np.testing.assert_allclose(fit(tmp_path, "procrustes", old, new).matrix, turn, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4)])
def test_an_orthogonal_matrix_costs_nothing_and_another_its_frobenius_distance(shape):
    matrix = torch.empty(*shape)
    torch.nn.init.orthogonal_(matrix, generator=torch.Generator().manual_seed(0))
    assert float(beyond_orthogonal(matrix, 0.01)) == 0.0
    doubled = 2 * matrix
    small = min(shape)
    assert float(beyond_orthogonal(doubled, 0.5)) == pytest.approx(math.sqrt(9 * small) - 0.5, rel=1e-4)


def test_a_tight_lambda_keeps_the_map_nearer_to_orthogonal_than_a_loose_one(tmp_path):
    old, new = rotated_pairs()
    new = unit(new * np.linspace(0.2, 2.0, 8))  # nothing orthogonal leads there
    found = {}
    for tolerance in (0.0, 100.0):
        options = {**SMALL["lambda_orthogonal"], "tolerance": tolerance}
        matrix = fit(tmp_path / str(tolerance), "lambda_orthogonal", old, new, options=options).matrix
        found[tolerance] = np.linalg.norm(matrix.T @ matrix - np.eye(8))
    assert found[0.0] < 0.3 * found[100.0]


def test_low_rank_is_the_regression_of_that_rank_with_the_least_error(tmp_path):
    """No other affine map of the rank does better: 50 random ones near it, and gradient descent from scratch, do not."""
    old, new = rotated_pairs(d_old=8, d_new=10)
    adapter = fit(tmp_path, "low_rank", old, new, options={"rank": 3, "ridge": 0.0})
    assert np.linalg.matrix_rank(adapter.matrix, tol=1e-4) == 3

    def error(matrix):
        lifted = (old - adapter.source_mean) @ matrix + adapter.target_mean
        return np.square(lifted - new).sum(axis=1).mean()

    rng = np.random.default_rng(0)
    left, sizes, right = np.linalg.svd(adapter.matrix, full_matrices=False)
    for _ in range(50):
        near = (left[:, :3] * sizes[:3] + 0.02 * rng.normal(size=(8, 3))) @ (
            right[:3] + 0.02 * rng.normal(size=(3, 10))
        )
        assert error(near) > error(adapter.matrix)


def test_a_low_rank_of_all_dims_is_ordinary_least_squares(tmp_path):
    old, new = rotated_pairs(d_old=8, d_new=8)
    adapter = fit(tmp_path, "low_rank", old, new, options={"rank": 8, "ridge": 0.0})
    design = np.hstack([old, np.ones((len(old), 1))]).astype(np.float64)
    expected = design @ np.linalg.lstsq(design, new, rcond=None)[0]
    np.testing.assert_allclose(
        (old - adapter.source_mean) @ adapter.matrix + adapter.target_mean, expected, atol=1e-4
    )


@pytest.mark.parametrize("method", ["bict", "fastfill"])
def test_classes_pull_lifted_vectors_to_their_prototypes(tmp_path, method):
    """Pairs that say nothing of where a class lies: only the classification can."""
    rng = np.random.default_rng(3)
    prototypes = unit(rng.normal(size=(4, 8)))
    labels = np.arange(400) % 4
    old = unit(0.5 * rng.normal(size=(400, 8)) + 2 * prototypes[labels][:, ::-1])
    new = unit(rng.normal(size=(400, 8)))
    closeness = []
    for name, told in (("right", labels), ("shuffled", rng.permutation(labels))):
        adapter = fit(
            tmp_path / name, method, old, new, options=SMALL[method], prototypes=prototypes, labels=told
        )
        closeness.append((adapter.transform(old)[0] * prototypes[labels]).sum(axis=1).mean())
    assert closeness[0] > closeness[1] + 0.1


def test_two_adapters_chain_to_the_third_model(tmp_path):
    first, second = rotated_pairs(d_old=6, d_new=8)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(10, 10)))[0][:8]
    third = unit(second @ turn)
    steps = [
        fit(tmp_path / str(place), "bict", a[:300], b[:300], options=SMALL["bict"], **classes(b[:300]))
        for place, (a, b) in enumerate([(first, second), (second, third)])
    ]
    lifted = steps[1].transform(steps[0].transform(first[300:])[0])[0]
    assert lifted.shape == (100, 10)
    assert ((lifted @ third[300:].T).argmax(1) == np.arange(100)).mean() > 0.3


def test_a_backward_adapter_maps_new_queries_into_the_old_space(tmp_path):
    old, new = rotated_pairs(d_old=6, d_new=10)
    fit_adapter(
        "residual_mlp", new[:300], old[:300], folder=tmp_path / "b", name="b", modality="image",
        source_fingerprint="new", target_fingerprint="old", options=SMALL["residual_mlp"],
    )  # fmt: skip
    mapped, _ = load_adapter(tmp_path / "b").transform(new[300:])
    assert mapped.shape == (100, 6)
    assert ((mapped @ old[300:].T).argmax(1) == np.arange(100)).mean() > 0.3


def test_descent_shows_the_loss_normalised_noisy_sources_and_their_own_targets():
    old, new = rotated_pairs(n=50)
    weight = torch.nn.Parameter(torch.zeros(8))
    seen = []

    def loss(source, target, rows):
        seen.append((source, target, rows))
        return (source @ weight).square().mean() + weight.sum()

    told = []
    Descent(steps=3, batch_size=16, noise=0.1).run(
        [weight], loss, old, new, 0, lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    for source, target, rows in seen:
        assert torch.equal(target, torch.from_numpy(new)[rows])
        clean = torch.from_numpy(old)[rows]
        assert torch.allclose(source.norm(dim=1), torch.ones(16), atol=1e-5)
        assert not torch.allclose(source, clean, atol=1e-3)
        assert (functional.cosine_similarity(source, clean) > 0.7).all()
