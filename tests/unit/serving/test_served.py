"""What a search may answer with: never a row without a vector, whatever the others score."""

from __future__ import annotations

import numpy as np

from orchestrator.index import make_index
from orchestrator.serving.served import Served


def test_rows_without_a_vector_never_take_an_answer_s_place():
    """They would score 0, and everything else less: unmasked they would fill the first places."""
    vectors = np.zeros((6, 4), np.float32)
    vectors[3:, 0] = [-1.0, -0.5, -0.2]
    served = Served(make_index("faiss-flat", vectors), np.array([0, 0, 0, 1, 1, 1]), None, 1)
    query = np.array([[1, 0, 0, 0]], np.float32)
    assert served.index.search(query, 2, served.allowed(None))[1].tolist() == [[5, 4]]
    served.index.replace(np.arange(3), np.full((3, 4), 0.1, np.float32))
    served.mark(np.arange(3), 2)
    assert served.allowed(None) is None
    assert served.versions == {1, 2}
    served.empty(np.array([4]))
    assert served.allowed(None).tolist() == [True, True, True, True, False, True]
