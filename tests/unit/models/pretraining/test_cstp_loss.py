"""The loss term by term, where gradients go, and the momentum's arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.pretraining.cstp_loss import (
    Labels,
    Predictions,
    Weights,
    contrastive,
    follow,
    momentum_copy,
    total,
)

UNIT = nn.functional.normalize(torch.arange(1.0, 13).reshape(3, 4), dim=1)


def test_equal_vectors_cost_nothing_and_opposite_ones_four_a_direction():
    assert contrastive((UNIT, UNIT), (UNIT, UNIT)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive((UNIT, UNIT), (-UNIT, UNIT)).item() == pytest.approx(4)
    assert contrastive((UNIT, UNIT), (-UNIT, -UNIT)).item() == pytest.approx(8)
    assert contrastive((7 * UNIT, UNIT), (UNIT, 3 * UNIT)).item() == pytest.approx(0, abs=1e-6)


def test_each_clip_predicts_the_other_ones_target():
    a, b = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert contrastive((a, b), (b, a)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive((a, b), (a, b)).item() == pytest.approx(4)  # two right angles


def test_no_gradient_goes_into_the_targets():
    predicted, target = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    contrastive((predicted, predicted), (target, target)).backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert target.grad is None


def logits(right: float, classes: int, label: int) -> torch.Tensor:
    """(2, classes) logits whose cross-entropy at `label` is `right`."""
    found = torch.zeros(2, classes)
    # softmax of one logit x against zeros: p = e^x / (e^x + classes - 1)
    p = math.exp(-right)
    found[:, label] = math.log(p * (classes - 1) / (1 - p))
    return found


SAID = Predictions(
    logits(2, 5, 1), logits(3, 5, 4), (logits(5, 4, 2), logits(7, 4, 2)), (logits(11, 4, 0), logits(13, 4, 3))
)


def of(*labels):
    return [torch.full((2,), label) for label in labels]


def test_the_total_is_a_tenth_of_the_contrastive_part_and_every_other_part_once():
    spatial, temporal, playback, first, second = of(1, 4, 2, 0, 3)
    labels = Labels(spatial, temporal, playback, (first, second))
    pair = torch.tensor(17.0)
    assert total(pair, SAID, labels).item() == pytest.approx(1.7 + 2 + 3 + (5 + 7) + (11 + 13), rel=1e-5)
    for only, wanted in (
        ("contrastive", 17),
        ("spatial", 2),
        ("temporal", 3),
        ("playback", 12),
        ("rotation", 24),
    ):
        weights = Weights(**{name: float(name == only) for name in Weights.__dataclass_fields__})
        assert total(pair, SAID, labels, weights).item() == pytest.approx(wanted, rel=1e-5)


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_momentum_copy_starts_equal_follows_by_its_share_and_takes_statistics_over():
    torch.manual_seed(0)
    online = network()
    target = momentum_copy(online)
    assert all(not p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    assert all(torch.equal(value, online.state_dict()[name]) for name, value in before.items())
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    online(torch.randn(8, 3))
    follow(target, online)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.004, atol=1e-6, rtol=0)
    for name, buffer in target.named_buffers():
        assert torch.equal(buffer, dict(online.named_buffers())[name])
    assert int(target[1].num_batches_tracked) == 1
    for _ in range(500):
        follow(target, online)
    left = (online[0].weight - target[0].weight).detach()
    torch.testing.assert_close(left, torch.full_like(left, 0.996**501), atol=1e-4, rtol=0)


def test_a_momentum_of_nonsense_and_another_network_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        follow(network(), network(), 1.5)
    with pytest.raises(ValueError, match="other parts"):
        follow(network(), nn.Linear(3, 2))
