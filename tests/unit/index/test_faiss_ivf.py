from __future__ import annotations

import numpy as np

from orchestrator.core.metrics import top_k
from orchestrator.index import IndexOptions
from orchestrator.index.faiss_ivf import FaissIvf


def test_few_allowed_rows_are_all_compared_so_that_none_is_missed():
    random = np.random.default_rng(0)
    gallery = random.normal(size=(4000, 12)).astype(np.float32)
    queries = random.normal(size=(60, 12)).astype(np.float32)
    allowed = np.zeros(4000, np.bool_)
    allowed[random.choice(4000, 300, replace=False)] = True
    places = np.flatnonzero(allowed)
    _, rows = FaissIvf(gallery, IndexOptions(nprobe=12)).search(queries, 2, allowed)
    np.testing.assert_array_equal(rows, places[top_k(queries, gallery[places], 2)[1]])
