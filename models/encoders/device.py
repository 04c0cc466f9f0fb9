"""Where an encoder's network runs, and in which numbers: the choice, its check, and the one guard around CUDA and fork."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from models.encoders import Encoder
from models.errors import UsageError

AUTO = "auto"
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precision by the name that settings use."""

LEAST_COSINE = 0.9995
"""A network in fewer bits is used only where every vector of a sample keeps at least this cosine to float32."""

Forward = Callable[..., Tensor]
"""Tensors of a sub-batch on the device -> (B, dim) float32 on the device, L2-normalised."""


@runtime_checkable
class TensorEncoder(Encoder, Protocol):
    """An encoder whose items become tensors and whose network can live on a device. An ability beside `Encoder`."""

    together: int
    """Items of one forward pass on a CPU."""

    def arrange(self, prepared: Sequence[Any]) -> Sequence[int]:
        """The places of the items in the order in which neighbours cost least together."""

    def collate(self, prepared: Sequence[Any], *, pinned: bool = False) -> tuple[Tensor, ...]:
        """Host tensors whose first axis counts the items; `pinned` memory can be copied while the device computes."""

    def forward_on(self, device: torch.device, dtype: torch.dtype) -> Forward:
        """The network on `device` in `dtype`; this encoder's own copy stays where it is."""


def choose_device(name: str = AUTO) -> torch.device:
    """The device that `name` means: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises UsageError: an unknown name, a GPU that is not there, or CUDA in a process forked after CUDA was in use.
    """
    kind, colon, number = name.partition(":")
    known = name in (AUTO, "cpu") or (kind == "cuda" and number.isdecimal() == bool(colon))
    if not known:
        raise UsageError(f"{name!r} is no device: set HOTREFRESH_DEVICE to auto, cpu, cuda or cuda:N.")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if name == AUTO and count == 0:
        return torch.device("cpu")
    index = int(number or 0)
    if index >= count:
        raise UsageError(
            f"{name} was asked for, but torch sees {count} GPUs: set HOTREFRESH_DEVICE to one that it sees, or to cpu."
        )
    _refuse_after_fork()
    return torch.device("cuda", index)


def _refuse_after_fork() -> None:
    # What CUDA holds in the parent is garbage in a forked child: torch would fail at the first kernel, or hang.
    if torch.cuda._is_in_bad_fork():
        raise UsageError(
            "this process was forked from one that uses CUDA, which does not survive that: start the worker with "
            "--pool solo or --pool threads, or spawn its processes."
        )


def choose_precision(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype to try: float32 on a CPU and bfloat16 on a GPU where nothing is asked for.

    Raises UsageError: an unknown name.
    """
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in PRECISIONS:
        raise UsageError(f"{name!r} is no precision: choose {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def least_cosine(vectors: Tensor, exact: Tensor) -> float:
    """The smallest cosine of a row to its exact row, both (n, dim) float32, n >= 1; -1 where a row is not finite."""
    cosines = functional.cosine_similarity(vectors.float(), exact.float(), dim=1)
    return float(torch.nan_to_num(cosines, nan=-1.0).min())


def unit_rows(vectors: Tensor) -> Tensor:
    """(B, dim) float32, L2-normalised in float32, from (B, dim) in any precision."""
    return functional.normalize(vectors.float(), dim=1)
