"""The vision transformer's norms: where they stand, what is saved, what is refused, what is trained without decay."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from models import recipes
from models.artifact import save_artifact
from models.compat import OldModel, create_method
from models.encoders import architecture_module, check_network, load_encoder
from models.encoders.images import ImagePreprocessing
from models.encoders.normalisation import DynamicTokenNorm, extra_parameters, gates_of
from models.errors import ArtifactError, UsageError
from models.parallel import Processes
from models.training_loop import Training
from tests.unit.models.test_training import OPTIONS, bars

SMALL = {"patch": 4, "width": 16, "depth": 3, "heads": 4}
SHAPE = ImagePreprocessing(size=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16), np.uint8)


def build(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architecture_module("vit").build({**SMALL, **options}, 10, SHAPE)


def save(folder, network, **options):
    save_artifact(
        folder, network.state_dict(), kind="encoder", name="e", architecture="vit", options={**SMALL, **options},
        modality="image", preprocessing=asdict(SHAPE), dim=10,
    )  # fmt: skip
    return folder


def dynamic(network):
    return [name for name, module in network.named_modules() if isinstance(module, DynamicTokenNorm)]


def test_the_first_blocks_have_the_norm_and_the_last_one_is_layer_norm():
    both = [f"blocks.{n}.norm_{where}" for n in range(3) for where in ("attention", "mlp")]
    assert dynamic(build()) == []
    assert dynamic(build(norm="dtn")) == both
    assert dynamic(build(norm="dtn", dtn_layers=2)) == both[:4]
    assert dynamic(build(norm="dtn_var", dtn_layers=1, dtn_at="attention")) == both[:1]
    assert isinstance(build(norm="dtn").norm, nn.LayerNorm)


def test_options_reach_the_norm():
    first = build(**recipes.NORMS["dtn published"]).blocks[0].norm_attention
    assert (first.pre_rms, first.correction, first.mean_gate, first.variance_only) == (False, 0, None, False)
    first = build(norm="dtn").blocks[0].norm_attention
    assert (first.pre_rms, first.correction, len(first.mean_gate), first.grid) == (True, 1, 4, 4)
    assert build(norm="dtn_var").blocks[0].norm_mlp.variance_only


def test_the_norm_adds_its_parameters_and_leaves_the_others_as_they_were():
    plain, other = build(), build(norm="dtn", dtn_layers=2)
    assert set(plain.state_dict()) < set(other.state_dict())
    counted = [sum(weight.numel() for weight in network.parameters()) for network in (plain, other)]
    assert counted[1] - counted[0] == 4 * extra_parameters(4)


@pytest.mark.parametrize("options", recipes.NORMS.values(), ids=recipes.NORMS)
def test_a_saved_and_loaded_artifact_gives_the_same_vectors(tmp_path, options):
    network = build(**options).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    encoder = load_encoder(save(tmp_path / "e", network, **options))
    vectors = encoder.encode(PIXELS)
    expected = (
        nn.functional.normalize(network(torch.from_numpy(PIXELS).float() / 255), dim=1).detach().numpy()
    )
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(PIXELS[2:3]), vectors[2:3], atol=1e-5)
    forward = encoder.forward_on(torch.device("cpu"), torch.bfloat16)
    with torch.inference_mode():
        coarse = forward(torch.from_numpy(PIXELS)).numpy()
    assert (coarse * vectors).sum(1).min() > 0.999


@pytest.mark.parametrize(
    ("weights", "manifest"), [({}, {"norm": "dtn"}), ({"norm": "dtn"}, {}), ({}, {"norm": "dtn_var"})]
)
def test_the_weights_of_one_norm_are_refused_as_anothers(tmp_path, weights, manifest):
    folder = save(tmp_path / "e", build(**weights), **manifest)
    said = "layer norm, but its weights are of dynamic" if weights else "dynamic token normalisation, but its"
    with pytest.raises(ArtifactError, match=said):
        load_encoder(folder)


def test_released_weights_are_refused_as_published_ones(tmp_path):
    folder = save(tmp_path / "e", build(norm="dtn"), **recipes.NORMS["dtn published"])
    with pytest.raises(ArtifactError, match="mean_gate"):
        load_encoder(folder)


def test_pictures_that_are_not_square_are_refused():
    for count in ((16, 24), (8, 16)):
        with pytest.raises(RuntimeError, match="size"):  # the positions
            build(norm="dtn")(torch.rand(1, 1, *count))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "batch"}, "layer, dtn, dtn_var"),
        ({"norm": "dtn", "dtn_layers": 4}, "1 to depth 3"),
        ({"norm": "dtn", "dtn_layers": 0}, "1 to depth 3"),
        ({"norm": "dtn", "dtn_at": "mlp"}, "both or attention"),
        ({"norm": "dtn", "gates": "no"}, "one or two"),
        ({"norm": "dtn", "pre_rms": 1}, "true or false"),
        ({"norm": "dtn", "unbiased_var": "no"}, "true or false"),
        ({"gates": "one"}, "gates belongs to norm dtn"),
        ({"dtn_layers": 2}, "dtn_layers belongs to norm dtn"),
        ({"patch": 5}, "must divide"),
        ({"heads": 0}, "must divide"),
        ({"depth": "many"}, "vit"),
        ({"colour": 1}, r"cannot take colour; it has patch, .*norm, dtn_layers"),
        ({"size": 16}, "cannot take size"),
    ],
)
def test_a_network_that_cannot_be_is_a_usage_error(options, match):
    with pytest.raises(UsageError, match=match):
        check_network("vit", {**SMALL, **options}, 10, SHAPE)


def test_networks_that_can_be_are_checked_without_making_their_weights():
    state = torch.get_rng_state()
    check_network("vit", {**SMALL, "norm": "dtn", "width": 2**16, "dtn_layers": None}, 10, SHAPE)
    check_network("convnet", {"widths": [8, 16]}, 10, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UsageError, match="cannot take norm; it has widths"):
        check_network("convnet", {"norm": "dtn"}, 10, SHAPE)


def stepped(weight_decay, **options):
    """The network after one step whose gates were far from where decay would leave them."""
    options = replace(
        OPTIONS, architecture="vit", network={**SMALL, **options}, weight_decay=weight_decay, epochs=1
    )
    pictures = bars()
    numbers = torch.tensor([int(label[1:]) for label in pictures.labels])
    nothing = OldModel(torch.zeros(len(numbers), 0), numbers, torch.zeros(8, 0), torch.zeros(8) > 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        training = Training(pictures, create_method("independent", {}), nothing, options, 0, Processes())
    with torch.no_grad():
        for gate in gates_of(training.network):
            gate.fill_(3.0)
    training.step()
    return training.network


def test_gates_are_left_out_of_weight_decay_and_nothing_else_is():
    without, strong = (dict(stepped(decay, norm="dtn").named_parameters()) for decay in (0.0, 10.0))
    for name, weight in without.items():
        if not weight.requires_grad:
            continue
        same = torch.equal(weight, strong[name])
        at_zero = name.endswith("bias")  # biases start at 0, where decay has nothing to take
        assert same if "gate" in name else (at_zero or not same), name
    assert sum("gate" in name for name in without) == 12


def test_every_weight_of_a_network_of_layer_norms_decays():
    strong = dict(stepped(10.0).named_parameters())
    assert all(
        name.endswith("bias") or not torch.equal(weight, strong[name])
        for name, weight in stepped(0.0).named_parameters()
    )
