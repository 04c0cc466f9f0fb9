"""The registry of orders, and each order's formula."""

from __future__ import annotations

import pkgutil

import numpy as np
import pytest

from orchestrator.core import orders
from orchestrator.core.orders import ORDERS, Input, order_scores
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


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_an_order_works_with_what_it_declares_and_refuses_to_work_without(unit, name):
    everything = {
        Input.EMBEDDINGS: unit(10, 4),
        Input.PROTOTYPES: unit(3, 4),
        Input.RNG: np.random.default_rng(0),
    }
    declared = {str(need): everything[need] for need in ORDERS[name].needs}
    assert order_scores(name, n=10, **declared).shape == (10,)
    for need in declared:
        with pytest.raises(ValueError, match=f"order {name} needs.*{need}"):
            order_scores(name, n=10, **{key: value for key, value in declared.items() if key != need})


def test_an_unknown_order_names_those_that_exist():
    with pytest.raises(ValueError, match=r"'best'.*entropy.*random"):
        order_scores("best", n=3)


def test_without_embeddings_the_number_of_rows_must_be_given():
    with pytest.raises(ValueError, match="number of rows"):
        order_scores("row")
