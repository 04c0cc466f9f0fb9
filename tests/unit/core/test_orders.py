"""The registry of orders, and each order's formula."""

from __future__ import annotations

import math
import pkgutil

import numpy as np
import pytest

from cli.orders import order_names
from orchestrator.core import orders, simulate
from orchestrator.core.orders import (
    ORDERS,
    Input,
    class_distance,
    demand_bases,
    needs_of,
    order_scores,
    real_orders,
)
from orchestrator.core.plan import order_rows


def softmax(embeddings, prototypes, temperature):
    p = np.exp(embeddings.astype(np.float64) @ prototypes.astype(np.float64).T / temperature)
    return p / p.sum(axis=1, keepdims=True)


FORMULAS = {
    "least_confidence": lambda p: 1 - p.max(axis=1),
    "margin": lambda p: 1 - (np.sort(p)[:, -1] - np.sort(p)[:, -2]),
    "entropy": lambda p: -(p * np.log(p)).sum(axis=1) / np.log(p.shape[1]),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_each_uncertainty_order_is_its_formula(unit, name, temperature):
    embeddings, prototypes = unit(300, 12), unit(20, 12)
    expected = FORMULAS[name](softmax(embeddings, prototypes, temperature))
    found = order_scores(name, embeddings, prototypes, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_the_item_between_two_prototypes_comes_before_the_one_on_a_prototype(name):
    prototypes = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    embeddings = np.array([[1, 0], [0.7071, 0.7071], [-1, 0]], np.float32)
    assert order_rows(order_scores(name, embeddings, prototypes))[0] == 1


def test_row_order_is_as_listed():
    assert order_rows(order_scores("row", n=1000)).tolist() == list(range(1000))


def test_random_order_is_the_same_for_the_same_seed_and_another_for_another():
    def shuffled(seed):
        return order_rows(order_scores("random", n=1000, rng=np.random.default_rng(seed))).tolist()

    assert shuffled(1) == shuffled(1)
    assert shuffled(1) != shuffled(2)
    assert sorted(shuffled(1)) == list(range(1000))


def test_every_file_of_the_folder_is_registered_under_its_own_name():
    files = {module.name for module in pkgutil.iter_modules(orders.__path__)} - {"base"}
    assert set(ORDERS) == files
    assert all(name == order.name for name, order in ORDERS.items())


def test_every_order_says_in_one_line_what_it_is():
    descriptions = [order.description for order in ORDERS.values()]
    assert len(set(descriptions)) == len(descriptions)
    assert all(10 < len(d) < 100 and "\n" not in d for d in descriptions)


@pytest.fixture
def everything(unit, rng):
    """Every input that any order declares, for 60 rows."""
    return {
        Input.EMBEDDINGS: unit(60, 8),
        Input.PROTOTYPES: unit(5, 8),
        Input.RNG: np.random.default_rng(0),
        Input.LOG_VARIANCE: rng.standard_normal(60).astype(np.float32),
        Input.LABELS: rng.integers(-1, 4, 60),
        Input.DEMAND: rng.integers(0, 9, 60).astype(np.float32),
        Input.NEW_EMBEDDINGS: unit(60, 8),
        Input.EXPECTED_FLIPS: rng.random(60).astype(np.float32),
    }


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_an_order_works_with_what_it_declares_and_refuses_to_work_without(everything, name):
    declared = {str(need): everything[need] for need in needs_of(name)}
    assert order_scores(name, n=60, **declared).shape == (60,)
    for need in declared:
        with pytest.raises(ValueError, match=f"order {name} needs.*{need}"):
            order_scores(name, n=60, **{key: value for key, value in declared.items() if key != need})


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_every_order_gives_a_finite_float32_a_row_and_the_same_ones_again(everything, name):
    def once():
        fresh = {str(need): value for need, value in everything.items()} | {"rng": np.random.default_rng(3)}
        return order_scores(name, n=60, **fresh)

    scores = once()
    assert (scores.shape, scores.dtype) == ((60,), np.float32)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, once())
    row_of = order_rows(scores)
    assert (np.diff(scores[row_of]) <= 0).all(), "higher is earlier"


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_an_order_changes_none_of_its_inputs(everything, name):
    before = {need: value.copy() for need, value in everything.items() if need is not Input.RNG}
    order_scores(name, n=60, **{str(need): value for need, value in everything.items()})
    for need, value in before.items():
        np.testing.assert_array_equal(everything[need], value)


@pytest.mark.parametrize(
    ("name", "need"),
    [
        (name, need)
        for name in sorted(ORDERS)
        for need in sorted(needs_of(name) - {Input.RNG, Input.PROTOTYPES})
    ],
)
def test_an_input_of_another_length_is_refused_by_name(everything, name, need):
    given = {str(each): value for each, value in everything.items()} | {str(need): everything[need][:-1]}
    with pytest.raises(ValueError, match=f"order {name}: 59 {need} for 60 rows"):
        order_scores(name, n=60, **given)


def slow_distance(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def slow_class_means(embeddings, labels):
    means = {}
    for label in {int(each) for each in labels if each >= 0}:
        members = [row for row in range(len(labels)) if labels[row] == label]
        means[label] = [
            sum(float(embeddings[row][at]) for row in members) / len(members)
            for at in range(embeddings.shape[1])
        ]
    return means


@pytest.mark.parametrize("chunk", [7, 4096])
def test_class_distance_is_the_distance_to_the_mean_of_the_class_or_to_the_nearest_one(
    unit, rng, monkeypatch, chunk
):
    monkeypatch.setattr(class_distance, "_CHUNK_ROWS", chunk)
    # Labels with gaps, and unlabelled rows that are not -1.
    embeddings, labels = unit(90, 6), np.array([-3, 0, 2, 7])[rng.integers(0, 4, 90)]
    means = slow_class_means(embeddings, labels)
    expected = [
        slow_distance(vector, means[int(label)])
        if label >= 0
        else min(slow_distance(vector, mean) for mean in means.values())
        for vector, label in zip(embeddings, labels, strict=True)
    ]
    np.testing.assert_allclose(order_scores("class_distance", embeddings, labels=labels), expected, rtol=1e-6)


def test_class_distance_without_any_label_is_refused(unit):
    with pytest.raises(ValueError, match="at least one labelled row"):
        order_scores("class_distance", unit(4, 3), labels=np.full(4, -1))


def slow_disagreement(embeddings, labels, k):
    shares = []
    for row in range(len(embeddings)):
        others = [other for other in range(len(embeddings)) if other != row and labels[other] >= 0]
        closeness = {o: float(np.float32(embeddings[row]) @ np.float32(embeddings[o])) for o in others}
        nearest = [int(labels[other]) for other in sorted(others, key=lambda o: (-closeness[o], o))[:k]]
        if not nearest:
            shares.append(0.0)
            continue
        own = int(labels[row])
        if own < 0:
            own = max(nearest, key=nearest.count)
        shares.append(sum(label != own for label in nearest) / len(nearest))
    return shares


@pytest.mark.parametrize(("k", "share_labelled"), [(1, 1.0), (4, 0.7), (200, 0.5), (3, 0.02)])
@pytest.mark.parametrize("ties", [False, True])
def test_neighbour_disagreement_is_the_share_of_other_labels_among_the_nearest(
    unit, grid, rng, k, share_labelled, ties
):
    embeddings = grid(80) if ties else unit(80, 5)
    labels = np.where(rng.random(80) < share_labelled, rng.integers(0, 4, 80), -1)
    found = order_scores("neighbour_disagreement", embeddings, labels=labels, neighbours=k)
    np.testing.assert_allclose(found, slow_disagreement(embeddings, labels, k), atol=1e-6)


def test_an_item_among_another_class_comes_before_one_among_its_own():
    embeddings = np.array([[1, 0], [1, 0.1], [1, -0.1], [0, 1], [0.1, 1], [-0.1, 1]], np.float32)
    labels = np.array([1, 0, 0, 1, 1, 1])
    assert order_rows(order_scores("neighbour_disagreement", embeddings, labels=labels, neighbours=2))[0] == 0


def test_sigma_is_the_predicted_log_variance_also_where_it_is_negative():
    predicted = np.array([-3.0, 0.5, -1.0], np.float32)
    assert order_scores("sigma", n=3, log_variance=predicted).tolist() == [-3.0, 0.5, -1.0]


@pytest.mark.parametrize("base", ["entropy", "margin", "class_distance", "random"])
def test_demand_is_the_score_of_the_base_order_times_how_often_each_item_is_retrieved(everything, base):
    given = {str(need): value for need, value in everything.items()}

    def scores(name, **more):
        return order_scores(name, n=60, **given | {"rng": np.random.default_rng(5)}, **more)

    expected = [float(s) * float(d) for s, d in zip(scores(base), everything[Input.DEMAND], strict=True)]
    np.testing.assert_allclose(scores("demand", base=base), expected, rtol=1e-6)


def test_demand_weights_entropy_unless_told_otherwise(everything):
    given = {str(need): value for need, value in everything.items()}
    np.testing.assert_array_equal(
        order_scores("demand", **given), order_scores("demand", **given, base="entropy")
    )
    assert needs_of("demand") == {Input.DEMAND, Input.EMBEDDINGS, Input.PROTOTYPES}
    assert needs_of("demand", "class_distance") == {Input.DEMAND, Input.EMBEDDINGS, Input.LABELS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demand": np.array([1, -1, 0], np.float32)}, "0 or more"),
        ({"demand": np.array([1, np.nan, 0], np.float32)}, "finite"),
        ({"base": "sigma"}, "gives negative ones"),
        ({"base": "demand"}, "cannot be built on demand"),
        ({"base": "best"}, "no order named 'best'"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused(change, message):
    given = {
        "n": 3,
        "base": "row",
        "demand": np.ones(3, np.float32),
        "log_variance": np.array([1, -2, 3], np.float32),
    }
    with pytest.raises(ValueError, match=message):
        order_scores("demand", **given | change)


def test_demand_weights_orders_whose_scores_are_never_negative_and_differ(everything):
    assert set(real_orders()) - set(demand_bases()) == {"demand", "row", "sigma"}
    given = {str(need): value for need, value in everything.items()}
    for name in demand_bases():
        found = order_scores(name, n=60, **given)
        assert (found >= 0).all()
        assert len(np.unique(found)) > 1


def test_the_oracle_is_the_distance_that_re_embedding_moves_an_item(unit, monkeypatch):
    monkeypatch.setattr(simulate, "_DISTANCE_ROWS", 7)
    old, new = unit(30, 5), unit(30, 5)
    expected = [slow_distance(a, b) for a, b in zip(old, new, strict=True)]
    np.testing.assert_allclose(order_scores("oracle", old, new_embeddings=new), expected, rtol=1e-5)


def test_only_orders_that_a_rollout_can_know_are_offered_to_one():
    assert set(ORDERS) - set(real_orders()) == {"oracle"}
    assert all(Input.NEW_EMBEDDINGS not in ORDERS[name].needs for name in real_orders())
    assert order_names() == real_orders(), "--help reads the files, the start the registry"


def test_an_unknown_order_names_those_that_exist():
    with pytest.raises(ValueError, match=r"'best'.*entropy.*random"):
        order_scores("best", n=3)


def test_without_embeddings_the_number_of_rows_must_be_given():
    with pytest.raises(ValueError, match="number of rows"):
        order_scores("row")
