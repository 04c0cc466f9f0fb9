"""`gpu_memory`: the fraction of the GPU's memory in use, by whomever. Without CUDA there is nothing to measure."""

from __future__ import annotations

from orchestrator.table_fields import Fields
from orchestrator.throttles.base import ProbeError, Surroundings

KIND = "gpu_memory"


class GpuMemory:
    """A fraction, 0 to 1, of the device that this process uses."""

    def read(self, surroundings: Surroundings) -> float | None:
        """Used over total; None without CUDA."""
        import torch

        if not torch.cuda.is_available():
            return None
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError as error:
            raise ProbeError(f"the GPU does not tell its memory: {str(error).splitlines()[0]}") from error
        return 1.0 - free / total


def build(fields: Fields, limit: float) -> GpuMemory:
    """The probe of one table: no keys of its own."""
    return GpuMemory()


LIMIT_MOST = 1.0
EXAMPLE = {"kind": KIND, "limit": 0.9}
