"""The loss, beside naive loops over its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.taca.losses import cross_model_contrast, taca_loss

TAU = 0.2


def unit(n: int, seed: int, dim: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


def by_hand(pictures, texts, same=None) -> float:
    n, total = len(pictures), 0.0
    for i in range(n):
        negatives = [j for j in range(n) if j == i or same is None or same[j] != same[i]]
        for rows, columns in ((pictures, texts), (texts, pictures)):
            scores = {j: float(rows[i] @ columns[j]) / TAU for j in negatives}
            total += math.log(sum(map(math.exp, scores.values()))) - scores[i]
    return total / n / 2


def test_both_directions_are_half_of_the_contrast():
    pictures, texts = unit(5, 0), unit(5, 1)
    assert float(cross_model_contrast(pictures, texts, TAU)) == pytest.approx(by_hand(pictures, texts))
    # CE of rows is not that of columns: one direction twice would be another number.
    one_way = float(functional.cross_entropy(pictures @ texts.T / TAU, torch.arange(5)))
    assert float(cross_model_contrast(pictures, texts, TAU)) != pytest.approx(one_way)


def test_pairs_with_the_same_text_are_no_negatives_of_each_other():
    pictures, texts = unit(6, 2), unit(3, 3).repeat(2, 1)
    same = torch.tensor([0, 1, 2, 0, 1, 2])
    found = float(cross_model_contrast(pictures, texts, TAU, same))
    assert found == pytest.approx(by_hand(pictures, texts, same.tolist()))
    assert found < float(cross_model_contrast(pictures, texts, TAU))


def test_the_whole_is_squared_distance_and_lambda_times_the_contrast():
    adapted, old, texts = unit(5, 4), unit(5, 5), unit(5, 6)
    distances = [
        sum(float(a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(adapted, old, strict=True)
    ]
    expected = sum(distances) / 5 + 0.7 * by_hand(adapted, texts)
    assert float(taca_loss(adapted, old, texts, contrast=0.7, temperature=TAU)) == pytest.approx(expected)


def test_with_lambda_zero_it_is_the_distillation_alone_and_no_text_is_looked_at():
    adapted, old = unit(5, 7), unit(5, 8)
    expected = float((adapted - old).square().sum(1).mean())
    nothing = torch.full((5, 4), float("nan"), dtype=torch.float64)
    for texts in (None, nothing):
        assert float(taca_loss(adapted, old, texts, contrast=0.0, temperature=TAU)) == expected
    with pytest.raises(ValueError, match="needs texts"):
        taca_loss(adapted, old, None, contrast=0.5, temperature=TAU)
