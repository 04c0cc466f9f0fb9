"""Small vectors whose dot products are exact in float32, so that expected ties are ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


@pytest.fixture
def grid(rng):
    """Vectors with small whole coordinates: many equal ones, many equal scores."""
    return lambda n, d=3: rng.integers(-2, 3, (n, d)).astype(np.float32)


@pytest.fixture
def unit(rng):
    """L2-normalised float32 vectors."""

    def make(n, d):
        vectors = rng.standard_normal((n, d))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return make
