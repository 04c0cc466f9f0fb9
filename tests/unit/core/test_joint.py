"""Codes and floats in one search."""

from __future__ import annotations

import numpy as np

from orchestrator.core.joint import joint_codes, joint_floats, joint_queries


def test_each_row_is_compared_in_its_own_space() -> None:
    random = np.random.default_rng(0)
    q_code, q_float, codes, floats = (
        random.standard_normal(shape).astype(np.float32) for shape in ((4, 5), (4, 3), (6, 5), (7, 3))
    )
    rows = np.concatenate([joint_codes(codes, 3), joint_floats(floats, 5)])
    scores = joint_queries(q_code, q_float) @ rows.T
    assert rows.dtype == scores.dtype == np.float32
    assert np.allclose(scores[:, :6], q_code @ codes.T, atol=1e-6)
    assert np.allclose(scores[:, 6:], q_float @ floats.T, atol=1e-6)
