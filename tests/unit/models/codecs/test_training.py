"""The loss that codecs are trained by, and the network that it trains: golden values, slow loops, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.codecs.losses import compatible, embedding_to_embedding, hard_contrast
from models.codecs.networks import Recurrent, code_of, sign


def golden_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the authors' loss in float64: 8 pairs and their identities, one of which comes twice."""
    i, j = np.meshgrid(np.arange(16), np.arange(4), indexing="ij")
    z = torch.from_numpy(np.sin(1.3 * i + 0.7 * j**2 + 0.2))
    return z[::2], z[1::2], torch.tensor([0, 1, 2, 3, 0, 5, 6, 7])


@pytest.mark.parametrize(("negatives", "value"), [(3, 32.193983), (5, 32.194439), (100, 32.194439)])
def test_the_loss_has_the_authors_values(negatives: int, value: float) -> None:
    assert embedding_to_embedding(*golden_rows(), 0.05, negatives).item() == pytest.approx(value, abs=1e-5)


def one_direction_by_hand(queries, gallery, identities, temperature, negatives) -> float:
    def cosine(a, b) -> float:
        return (
            sum(x * y for x, y in zip(a, b, strict=True))
            / math.dist(a, [0] * len(a))
            / math.dist(b, [0] * len(b))
        )

    total = 0.0
    for k, query in enumerate(queries):
        own = cosine(query, gallery[k]) / temperature
        others = [
            cosine(query, row) / temperature
            for row, identity in zip(gallery, identities, strict=True)
            if identity != identities[k]
        ]
        logits = [own, *sorted(others, reverse=True)[:negatives]]
        total += math.log(sum(math.exp(each) for each in logits)) - own
    return total / len(queries)


def sides() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    anchors, positives, old = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    return anchors, positives, old, torch.tensor([4, 4, 4, 1, 2, 1, 9])


@pytest.mark.parametrize("negatives", [1, 2, 5])
def test_each_query_is_held_against_the_hardest_rows_of_other_identities(negatives: int) -> None:
    anchors, positives, _, identities = sides()
    by_hand = one_direction_by_hand(anchors.tolist(), positives.tolist(), identities.tolist(), 0.3, negatives)
    assert hard_contrast(anchors, positives, identities, 0.3, negatives).item() == pytest.approx(by_hand)


def test_a_batch_of_one_identity_has_nothing_to_learn() -> None:
    anchors, positives, _, _ = sides()
    anchors.requires_grad_()
    loss = embedding_to_embedding(anchors, positives, torch.zeros(7, dtype=torch.int64), 0.05, 5)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(anchors.grad).all()


def test_the_compatible_loss_adds_new_anchors_against_old_codes_that_no_gradient_moves() -> None:
    anchors, positives, old, identities = sides()
    old.requires_grad_()
    anchors.requires_grad_()
    settings = {"temperature": 0.3, "negatives": 2}
    found = compatible(anchors, positives, old, identities, old_weight=0.7, **settings)
    alone = embedding_to_embedding(anchors, positives, identities, 0.3, 2).item()
    to_old = one_direction_by_hand(anchors.tolist(), old.tolist(), identities.tolist(), 0.3, 2)
    assert found.item() == pytest.approx(alone + 0.7 * to_old)
    found.backward()
    assert old.grad is None
    assert anchors.grad.abs().sum() > 0


def golden_network() -> tuple[Recurrent, torch.Tensor]:
    """The weights and inputs on which the authors' module was run, in float64: n = 4, m = 3, u = 2, no hidden layer."""

    def filled(function, rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(np.fromfunction(function, (rows, columns)))

    network = Recurrent(4, 3, 2, hidden=0, layers=1).double()
    with torch.no_grad():
        network.first[0].weight.copy_(filled(lambda i, j: np.sin(i + 2 * j + 1), 3, 4))
        network.first[0].bias.fill_(0.1)
        for k in range(2):
            network.back[k][0].weight.copy_(filled(lambda i, j, k=k: np.cos(i - j + k), 4, 3))
            network.again[k][0].weight.copy_(filled(lambda i, j, k=k: np.sin(2 * i + j + k + 1), 3, 4))
            network.again[k][0].bias.fill_(-0.05)
    return network, functional.normalize(filled(lambda i, j: np.cos(1.7 * i + 0.9 * j), 5, 4), dim=1)


def test_the_codes_are_the_authors() -> None:
    network, x = golden_network()
    expected = [
        (1.75, -1.75, -1.25),
        (0.25, 1.75, 1.25),
        (-1.75, 1.75, 1.25),
        (-0.25, -1.75, -1.25),
        (0.75, 1.25, -1.25),
    ]
    assert [tuple(row) for row in code_of(network(x)).tolist()] == expected


def test_each_residual_is_of_the_vector_itself_and_of_the_whole_code_so_far() -> None:
    network, _ = golden_network()
    generator = torch.Generator().manual_seed(0)
    x = functional.normalize(torch.randn(200, 4, generator=generator, dtype=torch.float64), dim=1)
    found = network(x).detach()
    b = sign(network.first(x))
    for k in range(2):
        activation = network.again[k](x - functional.normalize(network.back[k](b), dim=1))
        assert torch.allclose(found[:, k + 1], activation)
        b = b + sign(activation) / 2 ** (k + 1)
    assert torch.allclose(code_of(found), b)


def test_as_published_the_last_residual_is_peeled_by_the_last_signs() -> None:
    network, x = golden_network()
    released = network(x).detach()
    network.residual = "published"
    published = network(x).detach()
    assert torch.equal(published[:, :2], released[:, :2])  # the first residual is of x either way
    first, second = (sign(published[:, plane]) for plane in range(2))
    rest = x - functional.normalize(network.back[0](first), dim=1) - network.back[1](second)
    assert torch.allclose(published[:, 2], network.again[1](rest))
    assert not torch.allclose(published[:, 2], released[:, 2])


def test_the_sign_of_nothing_is_plus_one_and_gradients_pass_from_minus_one_to_one() -> None:
    activation = torch.tensor([-1.5, -1.0, -0.2, -0.0, 0.0, 0.7, 1.0, 1.001], requires_grad=True)
    signs = sign(activation)
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (signs * torch.arange(1.0, 9)).sum().backward()
    assert activation.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]
