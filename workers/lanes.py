"""How tensors reach a device: on a GPU by a stream of their own beside the computing one; on a CPU they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Lane(Protocol):
    """The way to one device. `bring` and the rest may be called from two threads."""

    @property
    def pinned(self) -> bool:
        """Whether host memory must be pinned, so that a copy goes on while the device computes."""

    def bring(self, host: Tensors) -> tuple[Tensors, Any]:
        """The tensors on the device, and what `wait` needs to know that they have arrived. Returns at once."""

    def wait(self, copied: Any, tensors: Tensors) -> None:
        """Let what is launched from here on wait for the copies. The host does not wait."""

    def finish(self) -> None:
        """Block until everything launched so far is done; errors of the device are raised here."""

    def free(self) -> None:
        """Give cached device memory back."""

    def current(self) -> Any:
        """Context in which the calling thread's tensors and kernels go to this device."""


class HostLane:
    """The CPU: nothing to copy, nothing to wait for."""

    pinned = False

    def bring(self, host: Tensors) -> tuple[Tensors, None]:
        """The tensors themselves."""
        return host, None

    def wait(self, copied: None, tensors: Tensors) -> None:
        """They are there."""

    def finish(self) -> None:
        """It is done."""

    def free(self) -> None:
        """The allocator of the host keeps nothing to speak of."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """No device to choose."""
        yield


class CudaLane:
    """One GPU: copies on a stream of their own, kernels on the calling thread's current one."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(self, host: Tensors) -> tuple[Tensors, torch.cuda.Event]:
        """See the protocol. torch keeps pinned memory until the copies that read it are done, so `host` may be dropped."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._copies):
            moved = tuple(tensor.to(self._device, non_blocking=True) for tensor in host)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._copies)
        return moved, copied

    def wait(self, copied: torch.cuda.Event, tensors: Tensors) -> None:
        """See the protocol."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        for tensor in tensors:
            # Allocated on the copying stream: not to be reused before the computing one has read it.
            tensor.record_stream(stream)

    def finish(self) -> None:
        """See the protocol. A blocking event lets decoding threads have the core; spinning would take it."""
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()

    def free(self) -> None:
        """See the protocol."""
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    @contextmanager
    def current(self) -> Iterator[None]:
        """See the protocol."""
        with torch.cuda.device(self._device):
            yield


def lane_of(device: torch.device) -> Lane:
    """The lane to a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()
