"""Where a network runs and in which numbers: the choice, its refusals, and networks in fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.artifact import Manifest
from models.encoders import architecture_module
from models.encoders.device import TensorEncoder, choose_device, choose_precision, least_cosine
from models.encoders.images import ImagePreprocessing, TorchImageEncoder
from models.encoders.minilm import DIM, LAYERS, MAX_TOKENS, Network
from models.errors import UsageError

CPU = torch.device("cpu")


def gpus(monkeypatch, count, forked=False):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: forked)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)  # fmt: skip
def test_the_device_is_the_one_asked_for_or_a_gpu_where_there_is_one(monkeypatch, name, count, expected):
    gpus(monkeypatch, count)
    assert str(choose_device(name)) == expected


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda1", "CUDA", "cuda:-1", "mps"])
def test_an_unknown_device_is_refused_with_the_known_ones(monkeypatch, name):
    gpus(monkeypatch, 2)
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused_with_the_number_there_is(monkeypatch, name, count):
    gpus(monkeypatch, count)
    with pytest.raises(UsageError, match=f"torch sees {count} GPUs"):
        choose_device(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_cuda_is_refused_after_a_fork_before_it_is_touched(monkeypatch, name):
    gpus(monkeypatch, 1, forked=True)
    with pytest.raises(UsageError, match="--pool solo"):
        choose_device(name)
    assert choose_device("cpu") == CPU


def test_a_gpu_computes_in_bfloat16_unless_told_otherwise():
    gpu = torch.device("cuda", 0)
    assert choose_precision(None, CPU) == torch.float32
    assert choose_precision(None, gpu) == torch.bfloat16
    assert choose_precision("float32", gpu) == torch.float32
    assert choose_precision("float16", CPU) == torch.float16
    with pytest.raises(UsageError, match="choose float32, bfloat16, float16"):
        choose_precision("half", gpu)


OPTIONS = {
    "convnet": {"widths": [4, 8], "hidden": 12},
    "vit": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "vit_adapted": {
        "network": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
        "source_dim": 12,
        "placement": "parallel",
        "rank": 3,
        "map_hidden": 0,
    },
}


@pytest.mark.parametrize("architecture", sorted(OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_network_elsewhere_gives_the_vectors_and_leaves_the_encoder_alone(architecture, dtype):
    torch.manual_seed(0)
    values = {"size": 16, "mode": "RGB", "fill": 0}
    network = architecture_module(architecture).build(OPTIONS[architecture], 10, ImagePreprocessing(**values))
    encoder = TorchImageEncoder(
        Manifest("encoder", "e", architecture, OPTIONS[architecture], "image", values, 10), network
    )
    assert isinstance(encoder, TensorEncoder)
    items = list(np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16), np.uint8))
    before = encoder.encode(items)
    with torch.inference_mode():
        found = encoder.forward_on(CPU, dtype)(*encoder.collate(items))
    assert (found.dtype, found.shape) == (torch.float32, (7, 10))
    assert least_cosine(found, torch.from_numpy(before)) > (0.9995 if dtype == torch.bfloat16 else 1 - 1e-6)
    assert list(encoder.arrange(items)) == list(range(7))
    np.testing.assert_array_equal(encoder.encode(items), before)


def test_collating_keeps_the_numbers_and_their_kind():
    encoder = TorchImageEncoder(
        Manifest("encoder", "e", "vit", {}, "image", {"size": 16}, 4), torch.nn.Identity()
    )
    items = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8)
    for given in (items, list(items)):
        (stack,) = encoder.collate(given)
        assert stack.dtype == torch.uint8
        np.testing.assert_array_equal(stack.numpy(), items)
    (floats,) = encoder.collate(items.astype(np.float32))
    assert floats.dtype == torch.float32


def minilm_weights():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    weights = {
        "embeddings.word_embeddings.weight": random(50, DIM),
        "embeddings.position_embeddings.weight": random(MAX_TOKENS, DIM),
        "embeddings.token_type_embeddings.weight": random(2, DIM),
        "embeddings.position_ids": torch.arange(MAX_TOKENS)[None],
    }
    shapes = {
        "attention.self.query": (DIM, DIM), "attention.self.key": (DIM, DIM), "attention.self.value": (DIM, DIM),
        "attention.output.dense": (DIM, DIM), "intermediate.dense": (4 * DIM, DIM), "output.dense": (DIM, 4 * DIM),
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name, shape in shapes.items():
            weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"] = (
                random(*shape),
                random(shape[0]),
            )
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + random(DIM), random(DIM)
    return weights


def test_the_text_network_in_bfloat16_stays_near_and_keeps_its_positions_whole():
    network = Network(minilm_weights())
    ids = torch.randint(0, 50, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9)[None] < torch.tensor([9, 3, 5, 1, 9])[:, None]).long()
    with torch.inference_mode():
        exact, near = network(ids, mask), network.on(CPU, torch.bfloat16)(ids, mask)
    assert (exact.shape, near.dtype) == ((5, DIM), torch.float32)
    assert least_cosine(near, exact) > 0.999
    assert network.on(CPU, torch.bfloat16)._weights["embeddings.position_ids"].dtype == torch.int64
    with torch.inference_mode():
        padded = network(torch.where(mask.bool(), ids, 0), mask)
    torch.testing.assert_close(padded, exact, msg="padding is no part of a text")


def test_the_least_cosine_is_that_of_the_worst_row():
    exact = torch.eye(3)
    assert least_cosine(exact.clone(), exact) == pytest.approx(1)
    turned = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert least_cosine(turned, exact) == pytest.approx(0.5**0.5)
    assert least_cosine(torch.full((3, 3), float("nan")), exact) == -1
