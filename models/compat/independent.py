"""No compatibility term: the paragon M(best, best) of compatible training, and the swap that must be refused."""

from __future__ import annotations

from torch import Tensor

from models.compat import CompatBatch


class Independent:
    """Adds nothing and uses nothing of an old model."""

    name = "independent"
    needs: frozenset[str] = frozenset()

    def term(self, batch: CompatBatch) -> Tensor:
        """Zero."""
        return batch.new.new_zeros(())
