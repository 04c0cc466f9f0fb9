"""The network: the released one's size, its shapes, and that the loss reaches every weight and falls."""

from __future__ import annotations

import pytest
import torch

from models.pretraining.cstp_loss import Labels, contrastive, follow, momentum_copy, total
from models.pretraining.cstp_network import CstpNetwork, R2Plus1D


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_it_has_as_many_parameters_as_the_released_one():
    with torch.device("meta"):
        assert parameters(R2Plus1D()) / 1e6 == pytest.approx(14.37, abs=0.005)
        assert parameters(CstpNetwork()) / 1e6 == pytest.approx(25.43, abs=0.015)


def test_a_clip_becomes_one_vector_and_time_matters():
    torch.manual_seed(0)
    network = R2Plus1D(2).eval()
    clip = torch.rand(2, 3, 8, 24, 16) * 2 - 1
    found = network(clip)
    assert found.shape == (2, 16)
    assert not torch.allclose(found, network(clip.flip(2)))
    torch.testing.assert_close(found[:1], network(clip[:1]))


def test_the_loss_reaches_every_weight_and_falls():
    torch.manual_seed(0)
    network = CstpNetwork(2, hidden=32)
    target = momentum_copy(network)
    first, second = (torch.rand(8, 3, 8, 16, 16) * 2 - 1 for _ in range(2))
    label = torch.arange(8)
    labels = Labels(label % 5, (label + 2) % 5, label % 4, (label % 4, (label + 1) % 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        predicted, said = network(first, second)
        targets = target.embed(first), target.embed(second)
        loss = total(contrastive(predicted, targets), said, labels)
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, p in network.named_parameters() if p.grad is None]
        assert missing == []
        optimizer.step()
        follow(target, network)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in target.parameters())


def test_each_clip_has_predictions_of_its_own_and_the_overlaps_see_both():
    torch.manual_seed(0)
    network = CstpNetwork(2, hidden=16).eval()
    clips = [torch.rand(2, 3, 8, 16, 16) * 2 - 1 for _ in range(3)]
    (mine, other), said = network(clips[0], clips[1])
    (mine_again, changed), again = network(clips[0], clips[2])
    torch.testing.assert_close(mine, mine_again)
    assert not torch.allclose(other, changed)
    for head in ("playback", "rotation"):
        torch.testing.assert_close(getattr(said, head)[0], getattr(again, head)[0])
        assert not torch.allclose(getattr(said, head)[1], getattr(again, head)[1])
    for head in ("spatial", "temporal"):
        assert not torch.allclose(getattr(said, head), getattr(again, head))
        assert not torch.allclose(getattr(said, head), getattr(network(clips[1], clips[0])[1], head))
    assert [each.shape for each in (said.spatial, said.temporal, *said.playback, *said.rotation)] == [
        (2, 5)
    ] * 6
