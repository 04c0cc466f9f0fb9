"""Dynamic token normalisation: golden values of the released module, a slow loop, limits, symmetries, errors, the cache."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.encoders.normalisation import (
    DynamicTokenNorm,
    extra_multiply_adds,
    extra_parameters,
    gates_of,
    grid_offsets,
    pool_of,
)

PUBLISHED = {"pre_rms": False, "gates": "one", "unbiased_var": False}


def golden_tokens():
    b, t, c = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 16, 16)), indexing="ij")
    return torch.sin(0.7 * t + 0.3 * c + 0.11 * b) * (1 + 0.1 * c)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(width=12, heads=3, grid=4, **options):
    """In double precision, with weights that are no starting values."""
    made = DynamicTokenNorm(width, heads, grid, **options).double()
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight += 0.3 * noise(*weight.shape, seed=number)
    return made


def opened(made, logit):
    """All gates at one logit."""
    with torch.no_grad():
        for gate in gates_of(made):
            gate.fill_(logit)
    return made


def plain(made):
    """Without scale and shift."""
    with torch.no_grad():
        made.weight.fill_(1.0)
        made.bias.zero_()
    return made


def rms_scaled(tokens, made):
    by_head = tokens.unflatten(2, (made.heads, -1))
    return (by_head / (by_head.square().mean(3, keepdim=True) + made.eps).sqrt()).flatten(2)


def slow(made, tokens):
    """The definition, one number at a time, for a grid that is not pooled."""
    B, T, C = tokens.shape
    edge, size = made.grid, C // made.heads
    x = rms_scaled(tokens, made) if made.pre_rms else tokens
    out = torch.empty_like(tokens)
    for b in range(B):
        for t in range(T):
            mean = sum(x[b, t]) / C
            variance = sum((x[b, t] - mean) ** 2) / (C - made.correction)
            for c in range(C):
                h = c // size
                a = made.position.weight[h]
                scores = []
                for s in range(T):
                    dx, dy = t % edge - s % edge, t // edge - s // edge
                    scores.append(math.exp(a[0] * dx + a[1] * dy + a[2] * (dx * dx + dy * dy)))
                near = sum(p * x[b, s, c] for s, p in enumerate(scores)) / sum(scores)
                square = sum(p * x[b, s, c] ** 2 for s, p in enumerate(scores)) / sum(scores)
                gates = [made.variance_gate if g is None else g for g in (made.mean_gate, made.variance_gate)]
                one, two = (float(torch.sigmoid(gate[h])) for gate in gates)
                one = 1.0 if made.variance_only else one
                mu = one * mean + (1 - one) * near
                sigma2 = two * variance + (1 - two) * (square - near**2)
                out[b, t, c] = (
                    made.weight[c] * (x[b, t, c] - mu) / math.sqrt(sigma2 + made.eps) + made.bias[c]
                )
    return out


# -- golden values of the authors' module ------------------------------------------------------------------------------


def test_the_start_is_the_released_modules():
    made = DynamicTokenNorm(16, 4, 4).double()
    assert made.position.weight.tolist() == [[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]]
    out = made(golden_tokens()).detach()
    expected = torch.tensor([-0.352483, 0.301959, 0.848320, 1.147483], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, :4], expected, atol=1e-6, rtol=0)
    expected = torch.tensor([1.050940, 1.007703, 0.888636, 0.668047], dtype=torch.float64)
    torch.testing.assert_close(out[1, 15, 12:], expected, atol=1e-6, rtol=0)
    assert float(out.sum()) == pytest.approx(13.003125, abs=1e-6)
    assert float(out.square().sum()) == pytest.approx(412.193032, abs=1e-6)


def test_variance_only_is_the_released_modules():
    out = DynamicTokenNorm(16, 4, 4, variance_only=True).double()(golden_tokens()).detach()
    assert float(out.sum()) == pytest.approx(-8.056484, abs=1e-6)
    assert float(out.square().sum()) == pytest.approx(493.689757, abs=1e-6)


def test_a_state_as_if_trained_is_the_released_modules():
    made = DynamicTokenNorm(16, 4, 4).double()
    with torch.no_grad():
        made.mean_gate.copy_(torch.tensor([-1.0, 0, 1, 2]))
        made.variance_gate.copy_(torch.tensor([2.0, 1, 0, -1]))
        made.position.weight += 0.05 * torch.arange(12.0).view(4, 3)
        made.position.bias += 3.0  # without effect
        made.weight.copy_(1 + 0.01 * torch.arange(16, dtype=torch.float64))
        made.bias.copy_(0.02 * torch.arange(16, dtype=torch.float64))
    out = made(golden_tokens()).detach()
    expected = torch.tensor([-0.238834, 0.362980, 1.004006, 1.567493], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, :4], expected, atol=1e-6, rtol=0)
    assert float(out.sum()) == pytest.approx(83.307629, abs=1e-6)
    assert float(out.square().sum()) == pytest.approx(578.143086, abs=1e-6)


def test_heads_beyond_a_square_start_at_small_random_weights():
    torch.manual_seed(0)
    weight = DynamicTokenNorm(24, 6, 4).position.weight
    assert weight[:4].abs().min() == 1
    assert 0 < weight[4:].abs().max() < 0.1


# -- the definition ----------------------------------------------------------------------------------------------------

VARIANTS = {
    "released": {},
    "published": PUBLISHED,
    "variance only": {"variance_only": True},
    "variance only, published": {**PUBLISHED, "variance_only": True},
    "one gate": {"gates": "one"},
    "biased": {"unbiased_var": False},
    "no rms": {"pre_rms": False},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_its_slow_loop(options):
    made, tokens = norm(grid=3, **options), noise(2, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(made(tokens), slow(made, tokens), atol=1e-10, rtol=0)


def test_an_open_gate_is_layer_norm_of_the_rms_scaled_tokens_and_not_layer_norm():
    made, tokens = opened(plain(norm()), 40.0), 3 * noise(2, 16, 12)
    scaled = nn.functional.layer_norm(rms_scaled(tokens, made), (12,), eps=made.eps * 11 / 12)
    out = made(tokens)
    torch.testing.assert_close(out, scaled * math.sqrt(11 / 12), atol=1e-9, rtol=0)
    assert (out - nn.functional.layer_norm(tokens, (12,))).abs().max() > 0.1


def test_an_open_gate_as_published_is_layer_norm():
    made, tokens = opened(norm(**PUBLISHED), 40.0), noise(2, 16, 12)
    expected = nn.functional.layer_norm(tokens, (12,), made.weight, made.bias, made.eps)
    torch.testing.assert_close(made(tokens), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["released", "published"])
def test_a_closed_gate_without_positions_is_instance_norm(options):
    made, tokens = opened(plain(norm(**options)), -40.0), noise(2, 16, 12)
    with torch.no_grad():
        made.position.weight.zero_()
    x = rms_scaled(tokens, made) if made.pre_rms else tokens
    expected = nn.functional.instance_norm(x.transpose(1, 2), eps=made.eps).transpose(1, 2)
    torch.testing.assert_close(made(tokens), expected, atol=1e-9, rtol=0)


def test_the_scale_of_the_tokens_is_without_effect():
    made, tokens = norm(), 1000 * noise(2, 16, 12)
    torch.testing.assert_close(made(tokens), made(0.01 * tokens), atol=1e-4, rtol=0)
    raw = norm(pre_rms=False)
    assert (raw(noise(2, 16, 12)) - raw(0.01 * noise(2, 16, 12))).abs().max() > 1e-3


def test_tokens_may_be_reordered_with_their_places_but_not_alone():
    made, tokens = norm(), noise(2, 16, 12)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    expected = made(tokens)[:, order]
    alone = made(tokens[:, order])
    made.offsets = made.offsets[order][:, order]
    torch.testing.assert_close(made(tokens[:, order]), expected, atol=1e-12, rtol=0)
    assert (alone - expected).abs().max() > 1e-2


@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["released", "published"])
@pytest.mark.parametrize("away", [0.0, 100.0, -1e4])
def test_tokens_far_from_zero_have_variances_that_are_none_the_worse(options, away):
    """E[x^2] - E[x]^2 of tokens that hardly differ: in float32 it would be far below zero, and its root no number."""
    made = opened(DynamicTokenNorm(12, 3, 4, **options), -8.0)
    tokens = away + 1e-3 * noise(2, 16, 12).float()
    assert torch.isfinite(made(tokens)).all()
    assert torch.isfinite(made(torch.full((2, 16, 12), away))).all()


def test_tokens_that_hardly_differ_keep_their_digits_in_float32():
    """Of a second moment of 1 the variance is a hundred thousandth: squares before the subtraction would lose it."""
    made = opened(DynamicTokenNorm(24, 4, 14), -8.0)
    tokens = (100 + 0.1 * noise(2, 196, 24)).float()
    exact = copy.deepcopy(made).double()(tokens.double()).float()
    torch.testing.assert_close(made(tokens), exact, atol=3e-4, rtol=0)


@pytest.mark.parametrize("grid", [4, 14])
def test_the_variance_of_ordinary_tokens_is_never_below_minus_a_millionth(grid):
    made = DynamicTokenNorm(24, 4, grid)
    for seed in range(20):
        by_head = rms_scaled(noise(2, grid**2, 24, seed=seed).float(), made).unflatten(2, (4, 6))
        smooth = by_head.cumsum(1) / torch.arange(1, grid**2 + 1)[:, None, None]  # neighbours alike
        for tokens in (by_head, smooth):
            assert made._by_position(tokens)[1].min() >= -1e-6


@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["released", "published"])
def test_two_halves_far_apart_are_no_error(options):
    """Where P sees one half alone, all of the second moment is rounding's: the worst that float32 meets."""
    for seed in range(6):
        made = DynamicTokenNorm(24, 4, 14, **options)
        apart = 10.0 ** (seed - 1) * noise(4, 1, 24, seed=seed) * (torch.arange(196) % 14 < 7)[None, :, None]
        with torch.no_grad():
            made.position.weight *= seed / 4
            assert torch.isfinite(made((0.001 * noise(4, 196, 24) + apart).float())).all()


def test_tokens_that_are_no_numbers_are_told_apart_from_a_result():
    tokens = noise(1, 16, 12)
    tokens[0, 3, 5] = math.nan
    with pytest.raises(AssertionError, match="variance"):
        norm()(tokens)


def test_a_variance_below_rounding_is_not_clamped():
    """Rows of P that do not sum to 1 make one."""
    made = norm().eval()
    made.weights_of_positions = lambda dtype: torch.full((3, 16, 16), -0.1, dtype=dtype)
    with pytest.raises(AssertionError, match="below zero"):
        made(noise(1, 16, 12))


def test_statistics_are_of_float32_where_tokens_are_not():
    made = DynamicTokenNorm(12, 3, 4)
    tokens = noise(2, 16, 12).float()
    half = copy.deepcopy(made).to(torch.bfloat16)(tokens.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), made(tokens.bfloat16().float()), atol=2e-2, rtol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(tokens), made(tokens))
        mixed = made(tokens)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, made(tokens), atol=0, rtol=0)


def test_gradients_reach_every_weight_that_counts():
    made = DynamicTokenNorm(12, 3, 4)
    made(noise(2, 16, 12).float()).pow(3).sum().backward()
    still = [name for name, weight in made.named_parameters() if weight.grad is None]
    assert still == ["position.bias"]
    assert min(float(weight.grad.abs().max()) for weight in made.parameters() if weight.requires_grad) > 1e-3


# -- pooling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "pool"), [(1, 1), (14, 1), (16, 2), (28, 2), (30, 3), (56, 4)])
def test_grids_above_the_largest_are_pooled_to_at_most_it(grid, pool):
    assert pool_of(grid) == pool
    assert DynamicTokenNorm(4, 2, grid).weights_of_positions().shape == (2, *2 * [(grid // pool) ** 2])


def test_pooled_statistics_are_those_of_averages_given_back():
    made, tokens = norm(heads=2, grid=16), noise(1, 256, 12)
    x = rms_scaled(tokens, made).view(1, 16, 16, 12)
    P = made.weights_of_positions(torch.float64).detach()
    found = [each.detach() for each in made._by_position(x.reshape(1, 256, 2, 6))]
    for c in (0, 7):
        cells = (
            torch.stack([x[0, :, :, c], x[0, :, :, c] ** 2]).view(2, 8, 2, 8, 2).mean(dim=(2, 4)).view(2, 64)
        )
        mean, second = (P[c // 6] @ cells.T).T
        for place in (0, 17, 255):
            cell = (place // 16 // 2) * 8 + place % 16 // 2
            assert float(found[0][0, place, c // 6, c % 6]) == pytest.approx(float(mean[cell]), abs=1e-12)
            variance = float(second[cell] - mean[cell] ** 2)
            assert float(found[1][0, place, c // 6, c % 6]) == pytest.approx(variance, abs=1e-12)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "match"),
    [(15, "square grid of 4 x 4"), (17, "class token"), (25, "not for 25"), (8, "not for 8")],
)
def test_tokens_that_are_not_the_grid_are_refused(count, match):
    with pytest.raises(ValueError, match=match):
        norm()(noise(1, count, 12))


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [((10, 3, 4), {}, "divide"), ((12, 3, 4), {"gates": "three"}, "gates"), ((12, 3, 17), {}, "pooled"),
     ((12, 3, 0), {}, "none")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        DynamicTokenNorm(*arguments, **options)


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "each"), [({}, 6), ({"gates": "one"}, 5), ({"variance_only": True}, 5)])
def test_the_extra_parameters_are_counted(options, each):
    made = DynamicTokenNorm(384, 6, 14, **options)
    extra = sum(weight.numel() for weight in made.parameters()) - 2 * 384
    assert extra == each * 6 == extra_parameters(6, **{"gates": "two", **options})


@pytest.mark.parametrize(
    ("width", "heads", "grid", "tokens"), [(12, 3, 4, 16), (8, 2, 14, 196), (8, 2, 28, 196)]
)
def test_the_extra_multiply_adds_are_those_torch_counts(width, heads, grid, tokens):
    made = DynamicTokenNorm(width, heads, grid).eval()
    images = torch.randn(1, grid**2, width)
    with torch.no_grad():
        made(images)  # caches P
        with FlopCounterMode(display=False) as counter:
            made(images)
    assert counter.get_total_flops() == 2 * extra_multiply_adds(width, grid) == 2 * 2 * width * tokens**2


def test_the_published_cost_is_of_one_norm_in_ten_blocks():
    per_width = {width: 10 * extra_multiply_adds(width, 14) / 1e9 for width in (192, 384, 768)}
    assert per_width == pytest.approx({192: 0.1475, 384: 0.295, 768: 0.59}, abs=1e-3)


# -- the cached P ------------------------------------------------------------------------------------------------------


def counted(made):
    """Counts how often P is computed."""
    calls, compute = [], made._positions

    def positions(dtype):
        calls.append(dtype)
        return compute(dtype)

    made._positions = positions
    return calls


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_p_is_computed_once_in_evaluation_and_equal(guard):
    made, tokens = norm().eval(), noise(2, 16, 12)
    expected = made(tokens).detach()  # with gradients: computed anew
    calls = counted(made)
    with guard():
        first, again = made(tokens), made(tokens)
    assert len(calls) == 1
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=0)
    assert torch.equal(first, again)
    made(tokens).sum().backward()  # what was cached without gradients does not keep them away later
    assert made.position.weight.grad is not None


def test_p_is_computed_in_every_step_of_training():
    made = norm().train()
    calls = counted(made)
    with torch.no_grad():
        made(noise(1, 16, 12))
        made(noise(1, 16, 12))
    assert len(calls) == 2


def changed_in_place(made):
    made.position.weight.add_(0.5)


def loaded(made):
    made.load_state_dict({name: tensor + 0.5 for name, tensor in made.state_dict().items()})


def another(made):
    made.position.weight = nn.Parameter(made.position.weight + 0.5)


def trained(made):
    made.train()
    made.position.weight.data += 0.5
    made.eval()


def given_data(made):
    made.position.weight.data = made.position.weight.data + 0.5


@pytest.mark.parametrize("change", [changed_in_place, loaded, another, trained, given_data])
def test_p_is_computed_anew_when_its_weights_change(change):
    made, tokens = norm().eval(), noise(2, 16, 12)
    with torch.no_grad():
        before = made.weights_of_positions(torch.float64)
        made(tokens)
        change(made)
        fresh = DynamicTokenNorm(12, 3, 4).double().eval()
        fresh.load_state_dict(made.state_dict())
        torch.testing.assert_close(made(tokens), fresh(tokens), atol=1e-12, rtol=0)
        assert (made.weights_of_positions(torch.float64) - before).abs().max() > 1e-3


def test_a_copy_in_another_precision_has_its_own_p():
    made = DynamicTokenNorm(12, 3, 4).eval()
    with torch.inference_mode():
        before = made.weights_of_positions()
        other = copy.deepcopy(made).to(torch.bfloat16)
        assert other.weights_of_positions() is not before
        assert torch.equal(made.weights_of_positions(), before)
        assert torch.equal(other.offsets, grid_offsets(4))


def test_p_is_no_part_of_the_weights():
    made = norm().eval()
    with torch.no_grad():
        made.weights_of_positions()
    assert set(made.state_dict()) == {
        "weight", "bias", "variance_gate", "mean_gate", "position.weight", "position.bias"
    }  # fmt: skip
