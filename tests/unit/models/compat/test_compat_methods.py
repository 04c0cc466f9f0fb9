"""Each loss against a slow loop written from the paper's formula, and: nothing flows into the old model."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models.compat import METHODS, CompatBatch, create_method, leading_coordinates
from models.errors import UsageError


def make_batch(B=24, C=7, d_n=10, d_o=10, knows=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: functional.normalize(torch.randn(*shape, generator=generator), dim=1)  # noqa: E731
    known = torch.ones(C, dtype=torch.bool) if knows is None else knows
    labels = torch.randint(C, (B,), generator=generator)
    return CompatBatch(
        draw(B, d_n), labels, draw(B, d_o), draw(C, d_o), known, new_head=draw(C, d_n), rows=torch.arange(B)
    )


def slow_ract(batch, tau, hardest):
    total = 0.0
    B, d_o = len(batch.new), batch.old.shape[1]
    for i in range(B):
        mine = [float(v) for v in batch.new[i]]
        short = (mine + [0.0] * d_o)[:d_o]
        dot = lambda a, b: sum(x * float(y) for x, y in zip(a, b, strict=True))  # noqa: E731
        others = [j for j in range(B) if int(batch.labels[j]) != int(batch.labels[i])]
        k_o = sorted((dot(short, batch.old[j]) for j in others), reverse=True)[:hardest]
        k_n = sorted((dot(mine, batch.new[j]) for j in others), reverse=True)[:hardest]
        positive = math.exp(dot(short, batch.old[i]) / tau)
        rest = sum(math.exp(s / tau) for s in k_o) + sum(math.exp(s / tau) for s in k_n)
        total -= math.log(positive / (positive + rest))
    return total / B


def slow_bct(batch, tau, leave_out):
    terms = []
    C, d_o = batch.old_head.shape
    for i in range(len(batch.new)):
        if leave_out and not batch.old_knows[batch.labels[i]]:
            continue
        vector = ([float(v) for v in batch.new[i]] + [0.0] * d_o)[:d_o]
        rows = [c for c in range(C) if batch.old_knows[c] or not leave_out]
        scores = {
            c: sum(a * float(b) for a, b in zip(vector, batch.old_head[c], strict=True)) / tau for c in rows
        }
        terms.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[int(batch.labels[i])])
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("d_n", "d_o"), [(10, 10), (12, 8), (8, 12)])
@pytest.mark.parametrize(("tau", "hardest"), [(0.1, 10), (0.5, 3)])
def test_ract_equals_the_papers_formula_computed_by_a_loop(d_n, d_o, tau, hardest):
    batch = make_batch(d_n=d_n, d_o=d_o)
    term = create_method("ract", {"temperature": tau, "hardest": hardest}).term(batch)
    assert float(term) == pytest.approx(slow_ract(batch, tau, hardest), rel=1e-4)


def test_ract_with_fewer_negatives_than_asked_for_takes_them_all():
    batch = make_batch(B=5, C=5)
    term = create_method("ract", {"temperature": 0.2, "hardest": 10}).term(batch)
    assert float(term) == pytest.approx(slow_ract(batch, 0.2, 10), rel=1e-4)


def test_ract_without_any_negative_is_zero():
    batch = make_batch(B=6, C=1)
    assert float(create_method("ract").term(batch)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("d_n", "d_o"), [(10, 10), (12, 8), (8, 12)])
@pytest.mark.parametrize("unseen", ["leave-out", "class-means"])
def test_bct_equals_the_papers_formula_computed_by_a_loop(d_n, d_o, unseen):
    knows = torch.tensor([True, False, True, True, False, True, False])
    batch = make_batch(d_n=d_n, d_o=d_o, knows=knows)
    term = create_method("bct", {"temperature": 0.1, "unseen": unseen}).term(batch)
    assert float(term) == pytest.approx(slow_bct(batch, 0.1, unseen == "leave-out"), rel=1e-4)


def test_bct_is_zero_for_a_batch_of_classes_the_old_model_never_saw():
    batch = make_batch(knows=torch.zeros(7, dtype=torch.bool))
    assert float(create_method("bct").term(batch)) == 0.0


@pytest.mark.parametrize("name", ["bct", "ract"])
def test_the_weight_multiplies_the_term(name):
    batch = make_batch()
    once, thrice = (float(create_method(name, {"weight": weight}).term(batch)) for weight in (1.0, 3.0))
    assert thrice == pytest.approx(3 * once, rel=1e-5)
    assert once > 0


@pytest.mark.parametrize("name", ["bct", "ract"])
def test_gradients_reach_the_new_model_and_nothing_of_the_old_one(name):
    drawn = make_batch()
    new, old, head = (t.clone().requires_grad_() for t in (drawn.new, drawn.old, drawn.old_head))
    create_method(name).term(replace(drawn, new=new, old=old, old_head=head)).backward()
    assert float(new.grad.abs().sum()) > 0
    assert old.grad is None
    assert head.grad is None


def test_independent_adds_nothing():
    assert float(create_method("independent").term(make_batch())) == 0.0


def test_every_registered_method_knows_its_own_name():
    assert {create_method(name).name for name in METHODS} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ract", {"temperature": 0}, "temperature must be above 0"),
        ("ract", {"temperature": float("nan")}, "temperature must be above 0"),
        ("ract", {"hardest": 0}, "hardest must be at least 1"),
        ("ract", {"hardest": 1.5}, "needs hardest as int, not 1.5"),
        ("ract_triplet", {"margin": -1}, "margin must be at least 0"),
        ("ract_classifier", {"weight": -0.5}, "weight must be at least 0"),
        ("bct", {"temperature": "cold"}, "needs temperature as float, not 'cold'"),
        ("bict", {"weight": True}, "needs weight as float"),
        ("dmu", {"confidence_temperature": 0.0}, "confidence_temperature must be above 0"),
        ("dmu", {"depth": 0}, "depth must be at least 1"),
        ("unibct", {"keep": 1.0}, "keep must be at least 0 and below 1"),
        ("lce", {"align": -1.0}, "align must be at least 0"),
        ("advbct", {"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ("advbct", {"depth": 1}, "depth must be at least 2"),
        ("independent", {"weight": 1.0}, "it has no options"),
    ],
)
def test_options_that_nothing_can_be_trained_with_are_usage_errors(method, options, message):
    with pytest.raises(UsageError, match=message):
        create_method(method, options)


def test_unknown_methods_and_options_are_usage_errors():
    with pytest.raises(UsageError, match="choose one of"):
        create_method("magic")
    with pytest.raises(UsageError, match="cannot take"):
        create_method("ract", {"colour": 1})
    with pytest.raises(UsageError, match="unseen"):
        create_method("bct", {"unseen": "guess"})


def test_leading_coordinates_cuts_and_pads():
    vectors = torch.arange(6.0).view(2, 3)
    assert leading_coordinates(vectors, 2).tolist() == [[0, 1], [3, 4]]
    assert leading_coordinates(vectors, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
