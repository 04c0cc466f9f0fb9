"""Adapters in a frozen vision transformer: nothing at first, where they stand, how many parameters, what learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.encoders.vit import ViT
from models.errors import UsageError
from models.taca.bottleneck import PLACEMENTS, Bottleneck, LayerAdapters, adapter_parameters, is_identity
from models.taca.network import MAP_ONLY, AdaptedViT, trained_parameters
from models.taca.space import SpaceMap, map_parameters

NETWORK = {"patch": 4, "width": 16, "depth": 3, "heads": 2}
SOURCE_DIM, DIM, RANK = 12, 7, 3


def backbone() -> ViT:
    torch.manual_seed(0)
    return ViT(dim=SOURCE_DIM, size=12, **NETWORK)


def adapted(placement: str, rank: int = RANK, map_hidden: int = 0) -> AdaptedViT:
    return AdaptedViT(backbone(), DIM, placement=placement, rank=rank, map_hidden=map_hidden)


def awakened(network: AdaptedViT) -> AdaptedViT:
    """With adapters that add something."""
    torch.manual_seed(1)
    for layer in network.adapters.modules():
        if isinstance(layer, Bottleneck):
            torch.nn.init.normal_(layer.up.weight)
            torch.nn.init.normal_(layer.up.bias)
    return network


def pixels(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_at_the_start_the_adapted_backbone_is_the_new_model_bit_for_bit(placement):
    network = adapted(placement)
    assert is_identity(network.adapters)
    plain = functional.normalize(backbone()(pixels()), dim=1)
    features = network.features(pixels())
    assert torch.equal(features.detach().view(torch.int32), plain.detach().view(torch.int32))
    assert torch.equal(network.native(pixels()), plain)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_that_add_something_change_features_and_never_the_native_embedding(placement):
    network = awakened(adapted(placement))
    assert not is_identity(network.adapters)
    plain = functional.normalize(backbone()(pixels()), dim=1)
    assert float((network.features(pixels()) - plain).detach().abs().max()) > 1e-3
    assert torch.equal(network.native(pixels()), plain)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_placement_is_its_formula(placement):
    block = backbone().blocks[0]
    layer = LayerAdapters(placement, 16, RANK)
    torch.manual_seed(3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    t = torch.randn(2, 9, 16)

    def delta(number, z):
        one = layer.bottlenecks[number]
        hidden = functional.gelu(z @ one.down.weight.T + one.down.bias)
        return hidden @ one.up.weight.T + one.up.bias

    if placement == "serial":
        expected = block(t) + delta(0, block(t))
    else:
        u = t + block.attention(block.norm_attention(t))
        if placement == "symmetric":
            u = u + delta(0, block.norm_attention(t))
        expected = u + block.mlp(block.norm_mlp(u)) + delta(-1, block.norm_mlp(u))
    torch.testing.assert_close(layer(block, t), expected)


@pytest.mark.parametrize("map_hidden", [0, 5])
@pytest.mark.parametrize("placement", [*PLACEMENTS, MAP_ONLY])
def test_the_number_of_trained_parameters_is_arithmetic(placement, map_hidden):
    rank = 0 if placement == MAP_ONLY else RANK
    network = adapted(placement, rank, map_hidden)
    counted = sum(each.numel() for each in network.parameters() if each.requires_grad)
    assert counted == sum(each.numel() for each in network.trained())
    assert counted == trained_parameters(
        NETWORK, SOURCE_DIM, DIM, placement=placement, rank=rank, map_hidden=map_hidden
    )


def test_the_counts_are_those_of_the_formula_by_hand():
    # ViT-L: 24 layers of width 1024, rank 64; 3.1 M weights, about 1 % of 304 M, and the biases.
    assert adapter_parameters("parallel", 24, 1024, 64) == 24 * 2 * 1024 * 64 + 24 * (1024 + 64) == 3_171_840
    assert adapter_parameters("symmetric", 24, 1024, 32) == 2 * 24 * (2 * 1024 * 32 + 1024 + 32)
    assert map_parameters(96, 48) == 96 * 48 + 48
    assert map_parameters(96, 48, 10) == 96 * 48 + 48 + 96 * 10 + 10 + 10 * 48


@pytest.mark.parametrize("placement", [*PLACEMENTS, MAP_ONLY])
def test_only_adapters_and_map_receive_gradients(placement):
    network = awakened(adapted(placement, 0 if placement == MAP_ONLY else RANK, map_hidden=4))
    network(pixels()).square().sum().backward()
    with_gradient = {name for name, each in network.named_parameters() if each.grad is not None}
    own = {name for name, _ in network.named_parameters() if not name.startswith("backbone.")}
    assert with_gradient == own
    assert own == {
        name for name, each in network.named_parameters() if any(each is one for one in network.trained())
    }


def test_the_map_starts_at_the_regression_of_old_on_new_embeddings():
    rng = np.random.default_rng(0)
    new = torch.from_numpy(rng.standard_normal((200, SOURCE_DIM)).astype(np.float32))
    weight = torch.from_numpy(rng.standard_normal((DIM, SOURCE_DIM)).astype(np.float32))
    old = new @ weight.T + 0.5
    found = SpaceMap(SOURCE_DIM, DIM, hidden=6)
    found.start_from(new, old)
    torch.testing.assert_close(found(new), old, atol=0.02, rtol=0.02)  # the MLP adds nothing yet


@pytest.mark.parametrize(
    ("placement", "rank", "said"),
    [
        ("sideways", 3, "sideways.*serial, parallel, symmetric, none"),
        ("parallel", 0, "rank 0"),
        ("none", 3, "none cannot have rank 3"),
        ("serial", -1, "rank -1"),
    ],
)
def test_what_cannot_be_built_is_said(placement, rank, said):
    with pytest.raises(UsageError, match=said):
        adapted(placement, rank)
    if placement == "sideways":
        with pytest.raises(UsageError, match="sideways"):
            adapter_parameters(placement, 1, 2, 3)
