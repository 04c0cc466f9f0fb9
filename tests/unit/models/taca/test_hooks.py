"""Adapters on encoders of other libraries: torch's own, and where it is installed Hugging Face's, of random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.errors import UsageError
from models.taca.hooks import PLACEMENTS, HookedAdapters


def torchs():
    torch.manual_seed(0)
    # In training mode: in evaluation torch takes another way through layers without hooks.
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    return encoder, list(encoder.layers), lambda: encoder(tokens())


def tokens():
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def library():
    return pytest.importorskip("transformers", reason="not installed: pip install transformers")


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def huggings_vision():
    found = library()
    torch.manual_seed(0)
    encoder = found.ViTModel(found.ViTConfig(**SIZES, image_size=8, patch_size=4)).eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return encoder, _layers(encoder, "ViTLayer"), lambda: encoder(pixel_values=pixels).last_hidden_state


def huggings_text():
    found = library()
    torch.manual_seed(0)
    encoder = found.BertModel(found.BertConfig(**SIZES, vocab_size=30)).eval()
    ids = torch.arange(12).view(2, 6)
    return encoder, _layers(encoder, "BertLayer"), lambda: encoder(input_ids=ids).last_hidden_state


def _layers(encoder, name):
    return [module for module in encoder.modules() if type(module).__name__ == name]


@pytest.mark.parametrize("make", [torchs, huggings_vision, huggings_text])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_encoder_of_another_library_is_adapted_and_can_be_had_as_it_was(make, placement):
    encoder, layers, answer = make()
    encoder.requires_grad_(
        False
    )  # where weights want gradients torch may choose another kernel, which rounds otherwise
    with torch.no_grad():
        before = answer()
    adapters = HookedAdapters(encoder, layers, width=16, rank=3, placement=placement)
    assert len(layers) == 2
    with torch.no_grad():
        assert torch.equal(answer().view(torch.int32), before.view(torch.int32))
    for one in adapters.bottlenecks:
        nn.init.normal_(one.up.weight)
    after = answer()
    assert float((after - before).detach().abs().max()) > 1e-3
    after.square().sum().backward()
    assert all(each.grad is not None for each in adapters.parameters())
    assert all(each.grad is None for each in encoder.parameters())
    with torch.no_grad(), adapters.native():
        assert torch.equal(answer(), before)
    adapters.remove()
    with torch.no_grad():
        assert torch.equal(answer(), before)


def test_each_placement_is_its_formula():
    for placement in PLACEMENTS:
        encoder, layers, _ = torchs()
        plain = layers[0](tokens())
        adapters = HookedAdapters(encoder, layers[:1], width=16, rank=3, placement=placement)
        assert not any(each.requires_grad for each in encoder.parameters())
        nn.init.normal_(adapters.bottlenecks[0].up.weight)
        entering = plain if placement == "serial" else tokens()
        torch.testing.assert_close(layers[0](tokens()), plain + adapters.bottlenecks[0](entering))


def test_what_cannot_be_adapted_is_said():
    encoder, layers, _ = torchs()
    with pytest.raises(UsageError, match="'symmetric': choose serial or parallel"):
        HookedAdapters(encoder, layers, width=16, rank=3, placement="symmetric")
    with pytest.raises(UsageError, match="rank is at least 1, not 0"):
        HookedAdapters(encoder, layers, width=16, rank=0)
    for strange in ([], [nn.Linear(2, 2)]):
        with pytest.raises(UsageError, match="own layers"):
            HookedAdapters(encoder, strange, width=16, rank=3)
